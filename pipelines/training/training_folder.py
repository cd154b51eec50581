"""Where a training in progress lives: checkpoints, events, signs of life, its MLflow run's id.

It lies outside of what the stage makes: DVC removes that before a stage starts, and a killed
training is to find its checkpoints again. Its name is a hash of all that decides the result, but
for the number of ranks and the device, which another attempt may choose anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_json, sha256_sources, write_json
from pipelines.core.waiting import wait_until
from pipelines.systems.locks import let_go, take, take_shared

PATIENCE = 30.0
"""Seconds to wait for the ranks of an attempt that was killed to end."""
KEPT = 3
"""How many other trainings' folders stay when one starts: those used last."""
_ANEW = ("processes", "device")
_LOCK, _RANKS_LOCK = "lock", "ranks.lock"


def name(config: TrainConfig, data_hash: str, root: Path) -> str:
    """Return the name of a training: equal data, settings, code and torch give equal names.

    Args:
        config: The settings.
        data_hash: Of the prepared images.
        root: The checkout with the code.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in _ANEW}
    code = sha256_sources([root / "prong", root / "pipelines/training"], root)
    return sha256_json([data_hash, settings, code, torch.__version__])[:16]


@dataclass(frozen=True)
class TrainingFolder:
    """The paths of one training.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, by step."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """What happened, a line each."""
        return self.path / "events.jsonl"

    @property
    def signs(self) -> Path:
        """Signs of life of the ranks, and how each ended."""
        return self.path / "ranks"

    @property
    def network(self) -> Path:
        """Where the trained network is left."""
        return self.path / "network"

    @property
    def job(self) -> Path:
        """What the ranks are told."""
        return self.path / "job.json"

    @property
    def log(self) -> Path:
        """What torchrun and the ranks print."""
        return self.path / "torchrun.log"

    def remembered(self) -> dict[str, Any]:
        """Return what `remember` wrote, or nothing."""
        path = self.path / "run.json"
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found

    def remember(self, **values: object) -> None:
        """Keep the MLflow run's id and the like for the next attempt."""
        write_json(self.path / "run.json", values)

    def forget(self) -> None:
        """Remove all that an earlier attempt left, so that the training begins anew."""
        for path in self.path.iterdir():
            if path.name in (_LOCK, _RANKS_LOCK):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other attempts out; wait until the ranks of the last one are gone.

        The kernel lets go of the locks when their holders die, however they die.

        Raises:
            UserError: If another attempt is at work.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as lock, (self.path / _RANKS_LOCK).open("a") as ranks:
            _lock(lock, self.path)
            _lock(ranks, self.path)
            let_go(ranks)
            self.signs.mkdir(exist_ok=True)
            yield

    def busy(self) -> bool:
        """Say whether an attempt is at work."""
        with (self.path / _LOCK).open("a") as lock:
            return not take(lock)

    def hold_as_rank(self) -> IO[str]:
        """Return a file that, while it is open, tells the next attempt that a rank is at work."""
        lock = (self.path / _RANKS_LOCK).open("a")
        take_shared(lock)
        return lock


def _lock(file: IO[str], where: Path) -> None:
    if not wait_until(lambda: take(file), PATIENCE, pause=0.1):
        raise UserError(
            f"{where}: another process is at work on the same training; wait for it or end it first"
        )


def tidy(folder: Path, mine: str) -> None:
    """Remove trainings that were not used for longest, all but `KEPT`, `mine` apart.

    Args:
        folder: Of all trainings.
        mine: The one that starts.
    """
    others = [path for path in folder.iterdir() if path.is_dir() and path.name != mine]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[KEPT:]:
        if not TrainingFolder(path).busy():
            shutil.rmtree(path)
