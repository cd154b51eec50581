"""The folder of a training in progress: checkpoints, events, heartbeats, MLflow run id.

It is not an output of the stage: DVC deletes outputs before a stage starts, and a killed training
needs its checkpoints. Its name is a hash of everything that decides the result, except the number
of ranks and the device, which another attempt may change.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_json, write_json
from pipelines.core.fingerprints import package_hash
from pipelines.core.own_code import own_hash
from pipelines.core.waiting import wait_until
from pipelines.systems.locks import let_go, take, take_shared
from pipelines.training.start_files import lineage_text

PATIENCE = 30.0
"""Seconds to wait until the ranks of a killed attempt have ended."""
KEPT = 3
"""How many folders of other trainings are kept when one starts: those used last."""
_ANEW = ("processes", "device")
_LOCK, _RANKS_LOCK = "lock", "ranks.lock"


def name(config: TrainConfig, data_hash: str, root: Path, task: str = "") -> str:
    """Return the name of a training: equal data, settings, code and torch give equal names.

    Args:
        config: The settings.
        data_hash: Of the prepared data.
        root: The checkout with the code.
        task: `task.name`, or what the data suggest; the hash of one's own task counts.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in _ANEW}
    code = package_hash(root, ("prong", "pipelines/tasks", "pipelines/training"))
    own = [
        own_hash(config.network, root, "train.network"),
        own_hash(config.augment_by, root, "train.augment_by"),
        own_hash(task, root, "task.name"),
    ]
    start = lineage_text(root, config.checkpoint_from)
    return sha256_json([data_hash, settings, code, own, start, torch.__version__])[:16]


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
        """The events, one per line."""
        return self.path / "events.jsonl"

    @property
    def signs(self) -> Path:
        """Heartbeats of the ranks, and how each ended."""
        return self.path / "ranks"

    @property
    def network(self) -> Path:
        """The folder of the trained network."""
        return self.path / "network"

    @property
    def job(self) -> Path:
        """The job of the ranks."""
        return self.path / "job.json"

    @property
    def log(self) -> Path:
        """Output of torchrun and the ranks."""
        return self.path / "torchrun.log"

    def remembered(self) -> dict[str, Any]:
        """Return what `remember` wrote, or nothing."""
        path = self.path / "run.json"
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found

    def remember(self, **values: object) -> None:
        """Store the MLflow run's id and similar values for the next attempt."""
        write_json(self.path / "run.json", values)

    def forget(self) -> None:
        """Remove everything of an earlier attempt, so that the training starts again."""
        for path in self.path.iterdir():
            if path.name in (_LOCK, _RANKS_LOCK):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    @contextmanager
    def held(self, still_at_work: Callable[[], str | None] = lambda: None) -> Iterator[str | None]:
        """Exclude other attempts; wait until the ranks of the last one have ended.

        The kernel releases the locks when their holders end for any reason.

        Args:
            still_at_work: Asked once no other process can ask: the name of a job by which the ranks
                of an earlier attempt still work or will; they are not waited for. What it returns
                is yielded.

        Raises:
            UserError: If another attempt is active.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as lock, (self.path / _RANKS_LOCK).open("a") as ranks:
            _lock(lock, self.path)
            found = still_at_work()
            if found is None:
                _lock(ranks, self.path)
                let_go(ranks)
            self.signs.mkdir(exist_ok=True)
            yield found

    def busy(self) -> bool:
        """Return whether an attempt is active."""
        with (self.path / _LOCK).open("a") as lock:
            return not take(lock)

    def hold_as_rank(self) -> IO[str]:
        """Return a file that shows the next attempt, while it is open, that a rank is active."""
        lock = (self.path / _RANKS_LOCK).open("a")
        take_shared(lock)
        return lock


def _lock(file: IO[str], where: Path) -> None:
    if not wait_until(lambda: take(file), PATIENCE, pause=0.1):
        raise UserError(
            f"{where}: another process runs the same training; wait for it or end it first"
        )


def tidy(folder: Path, mine: str) -> None:
    """Keep `mine` and the `KEPT` other trainings used last; remove the rest.

    Args:
        folder: The folder of all trainings.
        mine: Name of the training that starts.
    """
    others = [path for path in folder.iterdir() if path.is_dir() and path.name != mine]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[KEPT:]:
        if not TrainingFolder(path).busy():
            shutil.rmtree(path)
