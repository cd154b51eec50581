"""The one training loop of all trials and final trainings.

It counts updates, and the seconds of updates: reparametrisations and refreshes of peers count,
loading images and measuring do not. Figures are measured in evaluation mode, at fixed updates.
Equal seeds give equal weights at the start, and an equal order of equally varied images, for every
method.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from pipelines.paper import state_file
from pipelines.paper.compared_methods import METHODS, AttachedMethod, Method, attach, device
from pipelines.paper.experiment import Curve, CurveMark, TrainingTask
from pipelines.paper.training_problem import (
    AUGMENTED,
    STEPS,
    Figures,
    StatisticsBatches,
    TrainingProblem,
    drawn_at,
    order_of,
)
from pipelines.systems.optuna.dimensions import Value
from pipelines.training.learning_rate import Waterfall

_CHECKPOINT = 60.0
"""Seconds between checkpoints of a training that lasts."""
_DEFAULTS: dict[str, Value] = {
    "batch": 128,
    "schedule": "constant",
    "warmup": 0.0,
    "clip": 0.0,
    "init": "balanced",
    "statistics": STEPS,
    "patience": 3,
}
_DROP = 0.1
"""What the waterfall schedule multiplies the rate by, as in the paper."""
VALIDATION, VALIDATION_LOSS = "validation", "validation_loss"
"""The figures that the waterfall schedule looks at."""


def factor(schedule: str, warmup: float, done: float) -> float:
    """Return what the rate is multiplied by.

    Args:
        schedule: "constant", "linear" (to zero) or "cosine" (to zero).
        warmup: Share of the updates in which it rises first.
        done: Share of the updates that are made.
    """
    if done < warmup:
        return max(done / warmup, 1e-3)
    left = (1 - done) / (1 - warmup)
    match schedule:
        case "linear":
            return left
        case "cosine":
            return (1 - math.cos(math.pi * left)) / 2
        case _:
            return 1.0


def marks_of(updates: int, count: int) -> tuple[int, ...]:
    """Return the updates at which figures are measured: 0, and `count` evenly spaced ones."""
    return (0, *sorted({math.ceil(updates * n / count) for n in range(1, count + 1)}))


class _Clock:
    """Wall-clock and processor seconds between `start` and `stop`, added up."""

    def __init__(self, where: torch.device) -> None:
        self.seconds, self.processor, self._gpu = 0.0, 0.0, where.type == "cuda"

    def start(self) -> None:
        self._settle()
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> float:
        """Return the wall-clock seconds since `start`."""
        self._settle()
        took = time.perf_counter() - self._begun[0]
        self.seconds += took
        self.processor += time.process_time() - self._begun[1]
        return took

    def _settle(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


class Training:
    """One training, from its start or its checkpoint."""

    def __init__(self, problem: TrainingProblem, task: TrainingTask) -> None:
        """Build the network and attach the method.

        Args:
            problem: What is trained.
            task: How.
        """
        self.problem, self.task = problem, task
        self.values: dict[str, Value] = {**_DEFAULTS, **task.values}
        self.batch = int(self.values["batch"])
        self.updates = max(1, problem.examples // self.batch)
        self.device = device()
        self.method: Method = METHODS[task.method]
        torch.manual_seed(task.seed)
        network = problem.network().to(self.device)
        problem.begin(network)
        self.clock, self.refresh = _Clock(self.device), 0.0
        self.clock.start()
        self.update, self.statistics = 0, str(self.values["statistics"])
        self.attached: AttachedMethod = attach(
            self.method, network, self.values, self._statistics_batches()
        )
        self.clock.stop()
        self.rates = [
            [group["lr"] for group in optimizer.param_groups]
            for optimizer in self.attached.optimizers
        ]
        self.marks: list[CurveMark] = []
        self.before: Figures = {}
        self.falling: Waterfall | None = None
        if self.values["schedule"] == "waterfall":
            warmup = round(float(self.values["warmup"]) * self.updates)
            patience = int(self.values["patience"])
            self.falling = Waterfall(1.0, warmup, patience, _DROP, self.updates, cooldown=0.0)

    def run(self) -> Curve:
        """Train to the end, or to a loss that is not finite."""
        reason = ""
        try:
            if not self._resumed():
                self._start()
            reason = self._go_on()
        except LinAlgError as error:
            reason = f"a decomposition failed: {' '.join(str(error).split())[:120]}"
        if not reason and not all(map(math.isfinite, self.marks[-1].figures.values())):
            reason = "diverged: a figure at the end is not finite"
        if self.task.checkpoint is not None:
            self.task.checkpoint.unlink(missing_ok=True)
        return Curve(tuple(self.marks), self.refresh, reason, self.before)

    def _statistics_batches(self) -> StatisticsBatches | None:
        """Return what the statistics are of; None: of the training steps."""
        varied = self.statistics == AUGMENTED
        problem, seed = self.problem, self.task.seed
        if self.statistics == STEPS:
            return None
        return StatisticsBatches(problem, seed, self.batch, varied, lambda: self.update)

    def _start(self) -> None:
        attached = self.attached
        if attached.natural is not None:
            self.before = {**self._measured(), **self.problem.before(attached.model)}
            first = self.problem.initial(self.task.seed, self.batch, self.statistics)
            self.clock.start()
            attached.natural.initialize(first, init=str(self.values["init"]))
            self.clock.stop()
        self._mark()

    def _go_on(self) -> str:
        """Make the updates that are left; return why it ended early, or nothing."""
        order = itertools.islice(
            order_of(self.task.seed, len(self.problem.inputs)), self.update * self.batch, None
        )
        few = not self.task.final and self.falling is None  # the waterfall needs all of them
        count = min(4, self.problem.marks) if few else self.problem.marks
        due = set(marks_of(self.updates, count))
        saved = time.monotonic()
        while self.update < self.updates:
            chosen = torch.tensor(list(itertools.islice(order, self.batch)))
            inputs = self.problem.taken(chosen, drawn_at(self.task.seed, self.update, stream=0))
            all_targets = self.problem.targets
            targets = all_targets[chosen.to(all_targets.device)].to(self.device)
            self._rate(self.update / self.updates)
            self.clock.start()
            finite = self._step(inputs, targets)
            self.clock.stop()
            if not finite:
                return f"diverged: the loss of update {self.update + 1} is not finite"
            self.update += 1
            if self.update in due:
                self._mark()
                if not all(map(math.isfinite, self.marks[-1].figures.values())):
                    return f"diverged: a figure at update {self.update} is not finite"
            if time.monotonic() - saved > _CHECKPOINT and self.update < self.updates:
                self._save()
                saved = time.monotonic()
        return ""

    def _step(self, inputs: Tensor, targets: Tensor) -> bool:
        attached = self.attached
        loss = self.problem.loss(attached.model(inputs), targets)
        if not math.isfinite(float(loss.detach())):
            return False
        loss.backward()  # type: ignore[no-untyped-call]
        if limit := float(self.values["clip"]):
            nn.utils.clip_grad_norm_(attached.model.parameters(), limit)
        for optimizer in attached.optimizers:
            optimizer.step()
        if attached.natural is not None:
            report = attached.natural.step()
            self.refresh += report.seconds if report is not None else 0.0
        for optimizer in attached.optimizers:
            optimizer.zero_grad()
        return True

    def _rate(self, done: float) -> None:
        if self.falling is not None:
            by = self.falling.rate(self.update)
        else:
            by = factor(str(self.values["schedule"]), float(self.values["warmup"]), done)
        for optimizer, rates in zip(self.attached.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * by

    def _measured(self) -> Figures:
        model = self.attached.model
        self.attached.averaged(True)
        model.eval()
        try:
            with torch.no_grad():
                return dict(self.problem.measure(model))
        finally:
            model.train()
            self.attached.averaged(False)

    def _mark(self) -> None:
        figures = {**self._measured(), **self.problem.observe(self.attached.model)}
        clock, seen = self.clock, self.update * self.batch
        mark = CurveMark(self.update, seen, clock.seconds, clock.processor, figures)
        self.marks.append(mark)
        self.task.say(mark)
        if self.falling is not None and self.update:
            self.falling.evaluated(figures[VALIDATION], figures[VALIDATION_LOSS])

    def _save(self) -> None:
        if self.task.checkpoint is None:
            return
        attached = self.attached
        natural = attached.natural.state_dict() if attached.natural is not None else None
        state = {
            "update": self.update,
            "clock": [self.clock.seconds, self.clock.processor, self.refresh],
            "marks": [asdict(mark) for mark in self.marks],
            "before": dict(self.before),
            "model": dict(attached.model.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in attached.optimizers],
            "natural": natural,
            "falling": self._fallen(),
            "generator": torch.get_rng_state(),
        }
        with suppress(state_file.Unsavable):  # after a kill such a training begins again
            state_file.save(self.task.checkpoint, state)

    def _fallen(self) -> list[Any] | None:
        """Return the state of the waterfall schedule."""
        falling = self.falling
        return None if falling is None else [falling.falls, falling.stale, falling.best]

    def _resumed(self) -> bool:
        path: Path | None = self.task.checkpoint
        if path is None or not os.path.exists(path):
            return False
        state: Any = state_file.load(path)
        attached = self.attached
        attached.model.load_state_dict(state["model"])
        for optimizer, saved in zip(attached.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if attached.natural is not None:
            attached.natural.load_state_dict(state["natural"])
        if self.falling is not None:
            self.falling.falls, self.falling.stale, self.falling.best = state["falling"]
        torch.set_rng_state(state["generator"])
        self.update, self.before = state["update"], state["before"]
        self.clock.seconds, self.clock.processor, self.refresh = state["clock"]
        self.marks = [CurveMark(**mark) for mark in state["marks"]]
        for mark in self.marks:
            self.task.say(mark)
        return True


def train(problem: TrainingProblem, task: TrainingTask) -> Curve:
    """Make one training.

    Args:
        problem: What is trained; each batch of its tensors is brought to `methods.device()`.
        task: How.
    """
    return Training(problem, task).run()
