"""The watching process as its server sees it: started, heard, started again when it dies."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from pipelines.core.paths import Layout
from pipelines.serving.watch.lines import LONGEST_LINE, RegistryLook, parsed
from pipelines.systems.processes import end_group, kept

_TICK = 0.25  # seconds between two looks at whether to stop
_FIRST = 60.0  # seconds until the first line: MLflow is imported, and a file fetched
_SILENT, _HUNG = 15.0, 120.0  # seconds without a line: said; taken for hung
_LONGEST_PAUSE = 60.0  # seconds between two starts
_WELL = 60.0  # seconds after which a process that died counts as one that worked


@dataclass(frozen=True)
class Silent:
    """Nothing is known of the registry.

    Attributes:
        reason: Why, for people.
    """

    reason: str


class Watching:
    """Iterates over what the watching process tells, for as long as the server runs.

    All is done by the thread that iterates: it must outlive the process, which the kernel ends
    with the thread that started it.

    Attributes:
        starts: How often the process was started.
        pid: Of the process that runs now; 0 if none does.
    """

    def __init__(self, layout: Layout, model: str, poll: float, *, shadow: bool) -> None:
        root = str(layout.root.resolve())
        share = "shadow" if shadow else "alone"
        self._command = [
            *(sys.executable, "-m", "pipelines.serving.watch.watch_registry"),
            *(root, model, repr(poll), share),
        ]
        self._silent = max(_SILENT, 5 * poll)
        self._stop = threading.Event()
        self.starts, self.pid = 0, 0

    def stop(self) -> None:
        """Let the iteration end within a second, and the process with it."""
        self._stop.set()

    def __iter__(self) -> Iterator[RegistryLook | Silent]:
        """Yield each line, and each reason why there is none, once it is a reason."""
        pause = 1.0
        while not self._stop.is_set():
            began = time.monotonic()
            reason = yield from self._one_process()
            if self._stop.is_set():
                return
            pause = 1.0 if time.monotonic() - began > _WELL else pause
            yield Silent(f"registry: not watched: {reason}; it is started again")
            self._stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _one_process(self) -> Generator[RegistryLook | Silent, None, str]:
        """Yield what one process tells until it ends; return why it did."""
        process = subprocess.Popen(
            self._command,
            env=kept(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.starts, self.pid = self.starts + 1, process.pid
        try:
            return (yield from self._lines(process))
        finally:
            self.pid = 0
            assert process.stdout is not None
            process.stdout.close()
            end_group(process, grace=0.0)

    def _lines(
        self, process: subprocess.Popen[bytes]
    ) -> Generator[RegistryLook | Silent, None, str]:
        assert process.stdout is not None
        descriptor, pending = process.stdout.fileno(), b""
        heard, patience, said = time.monotonic(), _FIRST, False
        while not self._stop.is_set():
            if select.select([descriptor], [], [], _TICK)[0]:
                part = os.read(descriptor, LONGEST_LINE)
                if not part:
                    return f"the process ended with code {process.wait()}"
                pending += part
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    told = parsed(line)
                    if told is None:
                        return "what the process said cannot be read"
                    yield told
                    heard, patience, said = time.monotonic(), self._silent, False
                if len(pending) > LONGEST_LINE:
                    return "what the process said is too long"
            quiet = time.monotonic() - heard
            if quiet > max(_HUNG, patience):
                return f"the process was silent for {quiet:.0f} s"
            if quiet > patience and not said:
                said = True
                yield Silent(f"registry: silent for {quiet:.0f} s")
        return "the server ends"
