"""The train stage: starts the ranks under torchrun, follows them, and keeps the record."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines import tracking
from pipelines.config import Params, TrainConfig
from pipelines.errors import Failed, UserError
from pipelines.files import atomic_directory, sha256_file, write_json
from pipelines.layout import Layout
from pipelines.processes import run_group
from pipelines.training import methods
from pipelines.training.events import CONDITIONING, HISTORY, Event, EventReader, write_table
from pipelines.training.rank import Job


def device(config: TrainConfig) -> str:
    """Return where to train, `auto` resolved.

    Raises:
        UserError: If CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError(
            "train.device = 'cuda': torch finds no CUDA device here; allowed: auto, cpu"
        )
    return "cuda" if available and config.device != "cpu" else "cpu"


def processes(config: TrainConfig, device: str) -> int:
    """Return the number of ranks, `auto` resolved: one per GPU, else 1.

    Raises:
        UserError: If there are more ranks than GPUs, or too few images a step for them.
    """
    if config.processes == "auto":
        count = torch.cuda.device_count() if device == "cuda" else 1
    else:
        count = config.processes
    if device == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"train.processes = {count}: there are {torch.cuda.device_count()} CUDA devices; "
            "one process per device is allowed"
        )
    if config.batch < 2 * count:
        raise UserError(
            f"train.batch = {config.batch}: at least 2 images for each of the {count} processes "
            "are needed"
        )
    return count


def _threads(count: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // count)


class _Follower:
    """Turns events into a progress bar, MLflow points, and the tables kept for the report."""

    def __init__(self, events: Path, run: tracking.TrainingRun, progress: Progress) -> None:
        self._read, self._run, self._progress = EventReader(events), run, progress
        self._task = progress.add_task("train", total=None, note="starting the ranks")
        self.history: list[Event] = []
        self.conditioning: list[Event] = []
        self.error: str | None = None
        self.end: Event = {}

    def __call__(self) -> None:
        for event in self._read():
            match event.pop("kind"):
                case "start":
                    self._progress.update(self._task, total=event["steps"], note="")
                case "step":
                    self.history.append(event)
                    self._log(event)
                    note = f"loss {event['train_loss']:.4f}  {event['samples_per_second']:.0f}/s"
                    self._progress.update(self._task, completed=event["step"], note=note)
                case "evaluation":
                    self.history.append(event)
                    self._log(event)
                case "refresh":
                    for layer in event["layers"]:
                        self.conditioning.append({"step": event["step"], **layer})
                        self._log_layer(event["step"], layer)
                case "error":
                    self.error = event["message"]
                case "end":
                    self.end = event

    def _log(self, event: Event) -> None:
        self._run.log({k: v for k, v in event.items() if k != "step"}, step=event["step"])

    def _log_layer(self, step: int, layer: Event) -> None:
        name = layer["layer"]
        keys = CONDITIONING[2:]  # all but step and layer
        self._run.log({f"{key}/{name}": layer[key] for key in keys}, step=step)


def train(layout: Layout, params: Params) -> None:
    """Train the network and write `models/trained` and the tables of its history.

    Args:
        layout: The checkout.
        params: All parameters; `train` decides the training, the rest is recorded.

    Raises:
        UserError: If CUDA is absent, the loss diverges, or the registry does not answer.
        Failed: If a rank crashed.
    """
    config = params.train
    place = device(config)
    count = processes(config, place)
    values = {f"{s}.{k}": v for s, d in params.recorded().items() for k, v in d.items()}
    values["train.lr"] = methods.learning_rate(config)
    tags = {"prong.method": config.method, "prong.device": place, "prong.processes": str(count)}
    start = time.monotonic()
    tracking.close_dead_runs(layout)
    with (
        tracking.training_run(
            layout, experiment=params.model_name, params=values, tags=tags
        ) as run,
        tempfile.TemporaryDirectory(prefix="prong-train-") as scratch,
        atomic_directory(layout.trained) as out,
        _progress() as progress,
    ):
        events = Path(scratch) / "events.jsonl"
        follow = _Follower(events, run, progress)
        job = Job(config, str(layout.prepared), str(out), str(events), place, _threads(count))
        job.write(Path(scratch) / "job.json")
        _torchrun(Path(scratch) / "job.json", count, _threads(count), layout.root, follow)
        weights = sha256_file(out / "network.safetensors")
        write_table(layout.reports / "history.csv", HISTORY, follow.history)
        write_table(layout.reports / "conditioning.csv", CONDITIONING, follow.conditioning)
        figures = _figures(follow, params, place, count, time.monotonic() - start)
        write_json(layout.reports / "train.json", figures)
        run.tag(tracking.WEIGHTS_TAG, weights)


def _figures(
    follow: _Follower, params: Params, place: str, count: int, seconds: float
) -> dict[str, Any]:
    steps = [row for row in follow.history if "train_loss" in row]
    evaluations = [row for row in follow.history if "validation_error" in row]
    return {
        "method": params.train.method,
        "device": place,
        **_accelerator(place),
        "processes": count,
        "seed": params.train.seed,
        "lr": methods.learning_rate(params.train),
        "steps": follow.end["steps"],
        "seconds": round(seconds, 2),
        "train_loss": steps[-1]["train_loss"],
        "validation_error": evaluations[-1]["validation_error"],
        "validation_loss": evaluations[-1]["validation_loss"],
        "best": follow.end["best"],
        "reparametrisations": follow.end["refreshes"],
        "reparametrisation_seconds": round(sum(r["seconds"] for r in follow.conditioning), 3),
        "decomposition_fallbacks": sum(bool(r["fallback"]) for r in follow.conditioning),
    }


def _accelerator(place: str) -> dict[str, str]:
    """Return the GPU's name, and the versions of CUDA and of the driver; `none` on a CPU."""
    if place != "cuda":
        return dict.fromkeys(("gpu", "cuda", "driver"), "none")
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text)
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "driver": found[1] if found else "unknown",
    }


def _torchrun(job: Path, count: int, threads: int, root: Path, follow: _Follower) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["--log-dir", str(job.parent / "logs")]  # else one stays in /tmp for good
    command += ["--max-restarts", "0", "-m", "pipelines.training.rank", str(job)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    try:
        code = run_group(command, cwd=root, env=env, tick=follow)
    finally:
        follow()
    if follow.error:
        raise UserError(follow.error)
    if code != 0 or not follow.end:
        raise Failed(f"torchrun ended with exit code {code}; the rank's output says why")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
