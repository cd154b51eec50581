"""A training of the project's own loop under torchrun, read back as a curve."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.core.config import TrainConfig
from pipelines.core.errors import Failed, UserError
from pipelines.paper.experiment import Curve, CurveMark, TrainingTask
from pipelines.training.events import Event, EventReader
from pipelines.training.rank import Job
from pipelines.training.supervision import Machines, supervise, without_signs
from pipelines.training.training_folder import TrainingFolder

_CODE = Path(__file__).parents[2]
"""Where the ranks find the program."""
_CHECKPOINT = 500
"""Updates between checkpoints."""
_TIMEOUT = 600.0
"""Seconds without progress after which a rank counts as hung."""
_DIVERGED = "the training loss is"


def ranks_here(wanted: int) -> int:
    """Return how many ranks train: one for each GPU, or as many as wanted without any."""
    return torch.cuda.device_count() or wanted


def curve_of(events: Iterable[Event], batch: int) -> Curve:
    """Return what the events of a training say: a mark at each scoring of the validation split.

    Args:
        events: In order.
        batch: Images of an update, over all ranks.
    """
    marks: list[CurveMark] = []
    at, seconds, refresh, rate, error = 0, 0.0, 0.0, 0.0, float("nan")
    for event in events:
        match event["kind"]:
            case "step":
                rate, error = float(event["samples_per_second"]), float(event["train_error"])
                seconds += (int(event["step"]) - at) * batch / rate
                at = int(event["step"])
            case "refresh":
                refresh += sum(float(layer["seconds"]) for layer in event["layers"])
            case "evaluation":
                step = int(event["step"])
                # Updates since the last logged ones are taken to be as fast as those.
                rest = (step - at) * batch / rate if rate else 0.0
                figures = {
                    "train": error,
                    "validation": float(event["validation_error"]),
                    "validation_loss": float(event["validation_loss"]),
                }
                marks.append(CurveMark(step, step * batch, seconds + rest, 0.0, figures))
    return Curve(tuple(marks), refresh, figures={"images_per_second": rate})


def train(config: TrainConfig, prepared: Path, task: TrainingTask, ranks: int) -> Curve:
    """Make one training; one that was killed goes on from its checkpoint.

    Args:
        config: Its settings.
        prepared: The splits.
        task: Its checkpoint names the folder that is used meanwhile.
        ranks: Processes, with equal shares of each batch.

    Raises:
        UserError: If memory runs out, or a setting is wrong.
        Failed: If a rank crashed, or hung.
    """
    if task.checkpoint is None:
        raise ValueError("a training under torchrun needs a place for its files")
    folder = TrainingFolder(task.checkpoint.with_suffix(".ranks"))
    kept: list[Event] = []
    reason = ""
    with folder.held():
        without_signs(folder)
        job = _job(config, prepared, folder, ranks)
        job.write(folder.job)
        read = EventReader(folder.events)

        def follow() -> None:
            for event in read():
                if event["kind"] == "resume":  # what came after the checkpoint comes again
                    del kept[event["keep"] :]
                    continue
                kept.append(event)
                if event["kind"] == "evaluation":
                    task.say(curve_of(kept, config.batch).last)

        try:
            supervise(job, folder, Machines(ranks), root=_CODE, restarts=0, tick=follow)
        except UserError as error:
            if _DIVERGED not in str(error):
                raise
            reason = f"diverged: {error}"
        follow()
    if not reason and (not kept or kept[-1]["kind"] != "end"):
        raise Failed(f"{folder.path}: the ranks ended without reporting a result")
    shutil.rmtree(folder.path)
    curve = curve_of(kept, config.batch)
    return replace(curve, reason=reason, figures={**curve.figures, "ranks": float(ranks)})


def _job(config: TrainConfig, prepared: Path, folder: TrainingFolder, ranks: int) -> Job:
    return Job(
        config=config,
        prepared=str(prepared.resolve()),
        folder=str(folder.path.resolve()),
        device="cuda" if torch.cuda.is_available() else "cpu",
        threads=max(1, len(os.sched_getaffinity(0)) // ranks),
        checkpoint=_CHECKPOINT,
        keep=1,
        timeout=_TIMEOUT,
        ranks=ranks,
        attempt=f"{os.getpid()}-{time.time_ns()}",
    )
