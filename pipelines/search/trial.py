"""One trial: a training like any other, by one rank, in a process and a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.config import TrainConfig
from pipelines.systems.processes import end_group, kept
from pipelines.training.events import EventReader
from pipelines.training.heartbeat import ends, signs
from pipelines.training.rank import Job
from pipelines.training.training_folder import TrainingFolder

_NEVER = 2**31
"""Steps: a trial writes no checkpoint on its way, a killed one is begun again."""
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_GRACE = 3.0


@dataclass(frozen=True)
class Place:
    """Where a trial runs.

    Attributes:
        root: The checkout, whose code is run.
        prepared: Its prepared data, which are only read.
        device: `cpu` or `cuda`.
        threads: Threads of torch.
        gpu: Name of the one GPU that it sees; None on a CPU.
        timeout: Seconds without progress after which it counts as hung.
    """

    root: Path
    prepared: Path
    device: str
    threads: int
    gpu: str | None
    timeout: float


@dataclass(frozen=True)
class Scored:
    """The validation split, scored after an epoch.

    Attributes:
        epoch: From 1.
        error: Share of wrong answers, %.
        loss: Mean loss.
    """

    epoch: int
    error: float
    loss: float

    @property
    def objective(self) -> float:
        """The error; where errors are equal, the loss decides. Smaller is better."""
        # One image of a hundred thousand is 0.001 %, more than what the loss can add.
        return self.error + 1e-4 * self.loss / (1 + self.loss)


class RunningTrial:
    """A training in progress.

    Attributes:
        number: Of the trial.
        place: Where it runs.
        scores: What it came to so far, epoch by epoch.
    """

    def __init__(self, number: int, config: TrainConfig, place: Place, folder: Path) -> None:
        """Start it.

        Args:
            number: Of the trial.
            config: Its settings.
            place: Where it runs.
            folder: Of its own, made here and removed by `close`.
        """
        self.number, self.place, self.scores = number, place, list[Scored]()
        self._files = TrainingFolder(folder)
        self._files.signs.mkdir(parents=True)
        job = Job(
            config=config,
            prepared=str(place.prepared),
            folder=str(folder),
            device=place.device,
            threads=place.threads,
            checkpoint=_NEVER,
            keep=1,
            timeout=place.timeout,
            ranks=1,
            attempt=f"trial-{number}",
        )
        job.write(self._files.job)
        env = {k: v for k, v in os.environ.items() if k not in _TORCHRUN}
        env["OMP_NUM_THREADS"] = str(place.threads)
        env["CUDA_VISIBLE_DEVICES"] = place.gpu or ""
        self._read = EventReader(self._files.events)
        self._beat, self._moved = -1, time.monotonic()
        with self._files.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.training.rank", str(self._files.job)],
                cwd=place.root,
                env=kept(env),
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def news(self) -> Iterator[Scored]:
        """Yield the scores since the last call; stop reading, and the rest comes with the next."""
        for event in self._read():
            if event["kind"] == "evaluation":
                score = Scored(
                    int(event["epoch"]),
                    float(event["validation_error"]),
                    float(event["validation_loss"]),
                )
                self.scores.append(score)
                yield score

    @property
    def hangs(self) -> bool:
        """Whether it has made no progress for too long."""
        beat = sum(sign.beat for sign in signs(self._files.signs))
        if beat != self._beat:
            self._beat, self._moved = beat, time.monotonic()
        return time.monotonic() - self._moved > self.place.timeout

    @property
    def best(self) -> Scored:
        """The best score so far; there must be one."""
        return min(self.scores, key=lambda score: (score.error, score.loss))

    @property
    def done(self) -> bool:
        """Whether its process ended after the last epoch."""
        return self._process.poll() == 0

    @property
    def complaint(self) -> str:
        """What a trial that failed said of its settings; empty if it says nothing of them."""
        said = ends(self._files.signs).get(0, {})
        return str(said["message"]) if said.get("kind") == "user" else ""

    @property
    def crash(self) -> str:
        """How a trial failed, in one line, where `complaint` is empty."""
        said = ends(self._files.signs).get(0, {}).get("message")
        return str(said or f"its process ended with exit code {self._process.poll()}")

    def close(self) -> None:
        """End its process, if it runs, and remove its folder."""
        end_group(self._process, _GRACE)
        shutil.rmtree(self._files.path, ignore_errors=True)
