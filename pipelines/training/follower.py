"""Turns a training's events into progress, MLflow points and tables while it runs."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.systems import mlflow as tracking
from pipelines.training.events import CONDITIONING, Event, EventReader


class Follower:
    """Turns events into a progress bar, MLflow points, and the tables for the report."""

    def __init__(self, events: Path, run: tracking.TrainingRun, progress: Progress) -> None:
        self._read, self._run, self._progress = EventReader(events), run, progress
        self._task = progress.add_task("train", total=None, note="starting the ranks")
        self._kept: list[Event] = []

    def __call__(self) -> None:
        """Process the events since the last call."""
        for event in self._read():
            if event["kind"] == "resume":
                del self._kept[event["keep"] :]
                continue
            self._kept.append(event)
            match event["kind"]:
                case "start":
                    self._progress.update(
                        self._task, total=event["steps"], completed=event["step"], note=""
                    )
                case "step":
                    self._log(event)
                    note = f"loss {event['train_loss']:.4f}  {event['samples_per_second']:.0f}/s"
                    self._progress.update(self._task, completed=event["step"], note=note)
                case "evaluation":
                    self._log(event)
                case "refresh":
                    for layer in event["layers"]:
                        self._log_layer(event["step"], layer)

    @property
    def history(self) -> list[Event]:
        """Logged points and evaluations, in order."""
        return [event for event in self._kept if event["kind"] in ("step", "evaluation")]

    @property
    def conditioning(self) -> list[Event]:
        """A row for each layer of each reparametrisation, in order."""
        return [
            {"step": event["step"], **layer}
            for event in self._kept
            if event["kind"] == "refresh"
            for layer in event["layers"]
        ]

    @property
    def resumptions(self) -> int:
        """How often the training continued from a checkpoint."""
        return len([event for event in self._kept if event["kind"] == "start"]) - 1

    @property
    def end(self) -> Event:
        """The last event of the ranks after they finished."""
        last = self._kept[-1] if self._kept else {}
        return last if last.get("kind") == "end" else {}

    def _log(self, event: Event) -> None:
        points = {k: v for k, v in event.items() if k not in ("step", "kind")}
        self._run.log(points, step=event["step"])

    def _log_layer(self, step: int, layer: Event) -> None:
        name = layer["layer"]
        keys = CONDITIONING[2:]  # all but step and layer
        self._run.log({f"{key}/{name}": layer[key] for key in keys}, step=step)


def progress_bar() -> Progress:
    """Return a progress bar that is shown only on a terminal."""
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
