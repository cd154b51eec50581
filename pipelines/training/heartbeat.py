"""Heartbeats: each rank writes its identity and progress to a small file.

The process that started the ranks reads the files. It detects a rank that hangs, asks it for its
stack, and makes sure that no rank is left. A heartbeat is one short write in place, which is cheap
enough for every step.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.core.files import read_json, write_json
from pipelines.systems.processes import machine, process_start

_SIZE = 512


@dataclass(frozen=True)
class RankStatus:
    """The last heartbeat of a rank.

    Attributes:
        rank: The rank's number.
        pid: Its process id.
        start: Start time of the process; with `pid` and `machine` it identifies one process.
        machine: Boot and process namespace that it runs in.
        phase: One of loading, joining, initialising, training, evaluating, saving, ended.
        step: Optimizer steps made.
        beat: Number of heartbeats so far.
    """

    rank: int
    pid: int
    start: str
    machine: str
    phase: str
    step: int
    beat: int

    @property
    def here(self) -> bool:
        """Whether its process is visible from this one."""
        return self.machine == machine()

    @property
    def alive(self) -> bool:
        """Whether its process runs, as far as it is visible from here."""
        return self.here and process_start(self.pid) == self.start

    def send(self, signum: int) -> None:
        """Send its process a signal, unless the process has ended."""
        if self.alive:
            os.kill(self.pid, signum)


class Heartbeat:
    """This rank's heartbeat. On SIGUSR1 it writes its stack (`stack`)."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Write the first heartbeat.

        Args:
            folder: Folder of the heartbeats of all ranks; it exists.
            rank: This rank.
        """
        self._file = (folder / f"rank-{rank}.pulse").open("wb", buffering=0)
        self._stack = (folder / f"rank-{rank}.stack").open("w")
        faulthandler.register(signal.SIGUSR1, file=self._stack)
        (folder / f"rank-{rank}.end.json").unlink(missing_ok=True)
        self._folder = folder
        start = process_start(os.getpid()) or ""
        self.last = RankStatus(rank, os.getpid(), start, machine(), "", 0, 0)
        self("loading")

    def __call__(self, phase: str, step: int = 0) -> None:
        """Write the progress of this rank."""
        last = self.last
        self.last = replace(last, phase=phase, step=step, beat=last.beat + 1)
        os.pwrite(self._file.fileno(), json.dumps(asdict(self.last)).encode().ljust(_SIZE), 0)

    def end(self, how: str, **said: Any) -> None:
        """Write how this rank ended: `done`, `stopped` or `error`."""
        last = self.last
        write_json(
            self._folder / f"rank-{last.rank}.end.json",
            {"rank": last.rank, "how": how, "phase": last.phase, "step": last.step, **said},
        )
        self("ended", last.step)


def signs(folder: Path) -> list[RankStatus]:
    """Return the last heartbeat of each rank that wrote one."""
    found = []
    for path in folder.glob("rank-*.pulse"):
        try:
            found.append(RankStatus(**json.loads(path.read_bytes())))
        except (ValueError, TypeError):  # being written at this moment
            continue
    return sorted(found, key=lambda sign: sign.rank)


def ends(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the records of ranks that ended, by rank."""
    found = {}
    for path in folder.glob("rank-*.end.json"):
        said = read_json(path)
        found[int(said["rank"])] = said
    return found


def stack(folder: Path, sign: RankStatus) -> str:
    """Return the stack that a rank wrote on request; empty if it did not answer."""
    path = folder / f"rank-{sign.rank}.stack"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
