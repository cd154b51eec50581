"""Signs of life: each rank says in a small file who it is and how far it is.

The process that started the ranks reads them: to see that one hangs, to ask it where it is, and to
make sure that none is left. A sign is one short write in place, cheap enough for every step.
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
    """What a rank said last.

    Attributes:
        rank: Which.
        pid: Its process.
        start: When that was started; with `pid` and `machine` it names one process for good.
        machine: Boot and process namespace that it runs in.
        phase: What it is at: loading, joining, initialising, training, evaluating, saving, ended.
        step: Optimizer steps made.
        beat: Signs given so far.
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
        """Whether its process can be seen from this one."""
        return self.machine == machine()

    @property
    def alive(self) -> bool:
        """Whether its process runs, as far as it can be seen from here."""
        return self.here and process_start(self.pid) == self.start

    def send(self, signum: int) -> None:
        """Send its process a signal, unless it is gone."""
        if self.alive:
            os.kill(self.pid, signum)


class Heartbeat:
    """This rank's signs of life. SIGUSR1 makes it write where it is (`stack`)."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Give the first sign.

        Args:
            folder: Of the signs of all ranks; it exists.
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
        """Say how far this rank is."""
        last = self.last
        self.last = replace(last, phase=phase, step=step, beat=last.beat + 1)
        os.pwrite(self._file.fileno(), json.dumps(asdict(self.last)).encode().ljust(_SIZE), 0)

    def end(self, how: str, **said: Any) -> None:
        """Leave a record of how this rank ended: `done`, `stopped` or `error`."""
        last = self.last
        write_json(
            self._folder / f"rank-{last.rank}.end.json",
            {"rank": last.rank, "how": how, "phase": last.phase, "step": last.step, **said},
        )
        self("ended", last.step)


def signs(folder: Path) -> list[RankStatus]:
    """Return the last sign of each rank that gave one."""
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
    """Return what a rank wrote when it was asked where it is; empty if it did not answer."""
    path = folder / f"rank-{sign.rank}.stack"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
