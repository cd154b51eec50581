"""The challenger's process as the server sees it: asked with a deadline, ended when it is late."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipelines
from pipelines.serving.shadow.run_challenger import ANSWERS, COUNT_BYTES, READY
from pipelines.systems.confined import OUT_OF_MEMORY, Limits, end_of, resident, start_confined
from pipelines.systems.processes import end_group

_SOURCES = Path(pipelines.__file__).parents[1]
_LOG = "output.txt"
_TICK = 0.1  # seconds between two looks at the memory
_PART = 2**20  # bytes read or written at a time


class ShadowFailed(Exception):
    """The challenger gave no answer; the message says why."""


class ShadowProcess:
    """A process that runs the challenger, started at once; a context that ends it."""

    def __init__(
        self, file: Path, sha256: str, champion: Path, *, folder: Path, memory: int
    ) -> None:
        """Start the process.

        Args:
            file: The challenger.
            sha256: What it must be.
            champion: The released file that it is compared with.
            folder: An empty directory for it, of its own.
            memory: Bytes that it may use.
        """
        self._log, self._memory = folder / _LOG, memory
        self._process = start_confined(
            [
                *(sys.executable, "-m", "pipelines.serving.shadow.run_challenger"),
                *(str(file), sha256, str(champion)),
            ],
            cwd=folder,
            limits=Limits(math.inf, memory, 1),
            log=self._log,
            sources=_SOURCES,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def __enter__(self) -> ShadowProcess:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process and all that it started."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        end_group(self._process, grace=0.0)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def wait_ready(self, seconds: float) -> None:
        """Wait until the model is loaded.

        Raises:
            ShadowFailed: If it is not within so many seconds, or was refused.
        """
        if self._exchange(b"", len(READY), seconds) != READY:
            raise ShadowFailed("what it wrote is no answer")

    def ask(self, inputs: NDArray[Any], like: NDArray[Any], seconds: float) -> NDArray[Any]:
        """Return its answers.

        Args:
            inputs: As the data hold them, [n, …].
            like: The champion's answers, [n, …]: shape and type of what comes back.
            seconds: That it may take.

        Raises:
            ShadowFailed: If it answers late, wrongly or not at all.
        """
        given = len(inputs).to_bytes(COUNT_BYTES, "little") + np.ascontiguousarray(inputs).tobytes()
        found = self._exchange(given, len(ANSWERS) + like.nbytes, seconds)
        if found[: len(ANSWERS)] != ANSWERS:
            raise ShadowFailed("what it wrote is no answer")
        return np.frombuffer(found, like.dtype, offset=len(ANSWERS)).reshape(like.shape)

    def _exchange(self, given: bytes, wanted: int, seconds: float) -> bytes:
        """Write bytes and return as many as are wanted.

        Raises:
            ShadowFailed: If it does not take or give them in time, or outgrows its memory.
        """
        deadline, left, found = time.monotonic() + seconds, memoryview(given), bytearray()
        while left or len(found) < wanted:
            if time.monotonic() > deadline:
                raise ShadowFailed(f"no answer within {seconds:g} s")
            if resident(self._process.pid) > self._memory:
                raise ShadowFailed(f"it needed more than {self._memory // 2**20} MiB")
            reads, writes, _ = select.select([self._out], [self._in] if left else [], [], _TICK)
            try:
                if writes:
                    left = left[os.write(self._in, left[:_PART]) :]
                if reads:
                    part = os.read(self._out, min(wanted - len(found), _PART) or 1)
                    if not part:
                        raise ShadowFailed(self._end())
                    found += part
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise ShadowFailed(self._end()) from None
        if len(found) > wanted:
            raise ShadowFailed("it wrote more than an answer")
        return bytes(found)

    def _end(self) -> str:
        end_group(self._process, grace=0.5)
        code = self._process.wait()
        if code == OUT_OF_MEMORY:
            return f"it needed more than {self._memory // 2**20} MiB"
        said = end_of(self._log).rpartition("\n")[2]
        return said or (f"it was ended by signal {-code}" if code < 0 else f"exit code {code}")
