"""The training loop of one rank: Algorithm 1 of the paper around a stochastic gradient method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prong
from pipelines.core import faults
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.data.prepared import load_card, load_split
from pipelines.tasks.named import task_of
from pipelines.training import batches, methods, network
from pipelines.training import resumed_state as state
from pipelines.training.augmentation import augmentation
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.events import EventWriter, conditioning_rows
from pipelines.training.learning_rate import Waterfall
from pipelines.training.parallel import TrainingRanks, unreduced
from pipelines.training.shared_arrays import shared
from pipelines.training.warm_start import started
from prong.refresh.saved_state import shared_moments

LOG_EVERY = 10
"""Steps in each logged average of training loss and error."""
_SCORED = 256
"""Examples per scoring batch."""


@dataclass
class _Window:
    """Sums since the last logged point, on the device, so that logging rarely waits for it."""

    loss: Tensor
    error: Tensor
    examples: int = 0
    start: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class LoopState:
    """The content of a checkpoint for a rank; see `checkpoint.write`.

    Attributes:
        meta: Plain numbers that all ranks share.
        shared: Tensors that all ranks share, by file and name.
        numbers: Plain numbers of this rank alone.
        own: Tensors of this rank alone.
    """

    meta: dict[str, Any]
    shared: dict[str, state.Tensors]
    numbers: dict[str, Any]
    own: state.Tensors


StepHook = Callable[["Loop", str], None]
"""Called between two steps, and two parts of an evaluation, with the loop's phase: the same
number of times on every rank. It may raise; the loop's state is consistent then."""


def _nothing(_loop: Loop, _phase: str) -> None:
    """Return to let the loop continue."""


class Loop:
    """A training in progress on one rank.

    Args:
        config: Method and schedule.
        prepared: Output of `prepare`.
        ranks: This rank and the process group.
        emit: Receives events; only rank 0 emits any.
        after_step: See `StepHook`.
    """

    def __init__(
        self,
        config: TrainConfig,
        prepared: Path,
        ranks: TrainingRanks,
        emit: EventWriter | None,
        after_step: StepHook = _nothing,
    ) -> None:
        self.config, self.ranks, self.emit, self.after_step = config, ranks, emit, after_step
        card = load_card(prepared)
        self.spec = network.describe(config, card, prepared)
        self.vary = augmentation(config, prepared)
        self.task = task_of(card.form, prepared)
        torch.manual_seed(config.seed)  # the same initial weights on every rank
        made, self.start = started(config, self.spec, prepared)
        self.network = made.to(ranks.device)
        self.optimizer = methods.optimizer(config, self.network)
        self.natural = methods.reparametrizer(config, self.network, self.optimizer)
        self.parallel = ranks.parallel(self.network, config)
        train, validation = load_split(prepared, "train"), load_split(prepared, "validation")
        self.inputs = shared(train.inputs)
        self.targets = torch.from_numpy(train.targets)
        self.validation = (
            shared(validation.inputs),
            torch.from_numpy(validation.targets),
        )
        self.schedule = Waterfall(
            lr=methods.learning_rate(config),
            warmup=config.warmup,
            patience=config.patience,
            drop=config.drop,
            steps=self.steps,
            cooldown=config.cooldown,
        )
        self.step = 0
        self.refreshes = 0
        self.best: dict[str, float] = {}
        self.unscored = False  # an epoch has ended and is not scored yet
        self._window = self._new_window()

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return batches.steps_per_epoch(len(self.inputs), self.config.batch)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * self.per_epoch

    def _epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, int]]:
        config, ranks = self.config, self.ranks
        for inputs, targets, size in batches.epoch(
            self.inputs,
            self.targets,
            batch=config.batch,
            augment=config.augment,
            flip=config.flip,
            vary=self.vary,
            seed=config.seed,
            number=number,
            rank=ranks.rank,
            ranks=ranks.size,
            first=first,
        ):
            yield inputs.to(ranks.device), targets.to(ranks.device), size

    def run(self) -> dict[str, float]:
        """Train from the current step to the last and return the best validation figures.

        Raises:
            UserError: If the loss is NaN or infinite.
        """
        if self.step == 0 and self.natural is not None:
            self.after_step(self, "initialising")
            samples = (inputs for inputs, _, _ in self._epoch(0))
            # Weights that were learnt are not drawn anew.
            init = "preserve" if self.start and self.start.taken else self.config.init
            self._refreshed(self.natural.initialize(samples, init=init))
            faults.point("train.initialised")
        if self.unscored:
            self._evaluate()
        self.after_step(self, "training")
        self._window = self._resumed_window()
        while self.step < self.steps:
            self._train(*divmod(self.step, self.per_epoch))
        return self.best

    def _train(self, number: int, first: int) -> None:
        """Train one epoch, from its batch `first` on, and score it."""
        self.network.train()
        for inputs, targets, size in self._epoch(number, first):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            self._backward(inputs, targets, size)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.natural is not None:
                self._refreshed(self.natural.step())
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                self._log()
            if self.step % self.per_epoch == 0:
                if self.config.batch_norm == "rank":
                    self.ranks.average_buffers(self.network)
                self.unscored = True
                self._evaluate()
            faults.point("train.step")
            self.after_step(self, "training")

    def _backward(self, inputs: Tensor, targets: Tensor, size: int) -> None:
        """Compute the gradients of one batch of `size` examples over all ranks, part by part."""
        parts = self.config.accumulate
        pairs = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for index, (part, wanted) in enumerate(pairs, 1):
            with nullcontext() if index == parts else unreduced(self.parallel):
                raw = self.parallel(part)
                # Divided by the global batch: the sum over all parts and ranks is its mean.
                loss = self.task.loss(raw, wanted, part).sum() / size
                loss.backward()  # type: ignore[no-untyped-call]
            self._window.loss += loss.detach() * size
            self._window.error += self.task.score(raw.detach(), wanted, part).sum()
        self._window.examples += size

    def _new_window(self) -> _Window:
        zero = torch.zeros((), device=self.ranks.device)
        return _Window(zero.clone(), zero.clone())

    def _resumed_window(self) -> _Window:
        """Return the window with its clock started; earlier time belongs to another process."""
        window = self._window
        return _Window(window.loss, window.error, window.examples)

    def _log(self) -> None:
        window, number = self._window, (self.step - 1) // self.per_epoch
        totals = self.ranks.sum_(torch.stack([window.loss, window.error])) / window.examples
        loss, error = totals.tolist()
        if not math.isfinite(loss):
            raise UserError(
                f"train.lr = {self.schedule.lr:g}: the training loss is {loss} at step {self.step}"
                "; lower train.lr or raise train.damping or train.warmup"
            )
        seconds = time.perf_counter() - window.start
        self._say(
            "step",
            step=self.step,
            epoch=number + 1,
            train_loss=round(loss, 6),
            train_error=round(100 * error, 4),
            lr=self.schedule.rate(self.step - 1),
            samples_per_second=round(window.examples / seconds, 1),
        )
        self._window = self._new_window()

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Score the validation split, update the schedule, and store the best figures."""
        number = self.step // self.per_epoch
        self.network.eval()
        inputs, targets = self.validation
        mine = batches.slice_of(len(inputs), self.ranks.rank, self.ranks.size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        most = -(-len(inputs) // self.ranks.size)  # so that every rank has equally many turns
        for start in range(0, most, _SCORED):
            self.after_step(self, "evaluating")
            part = inputs[mine][start : start + _SCORED].to(self.ranks.device, copy=True)
            wanted = targets[mine][start : start + _SCORED].to(self.ranks.device)
            if len(part):
                raw = self.network(part)
                sums[0] += self.task.loss(raw, wanted, part).sum()
                sums[1] += self.task.score(raw, wanted, part).sum()
        loss, error = (self.ranks.sum_(sums) / len(inputs)).tolist()
        figures = {
            "validation_loss": round(loss, 6),
            "validation_error": round(100 * error, 4),
        }
        if self.schedule.evaluated(error, loss):
            self.best = {**figures, "epoch": number}
        self.unscored = False
        self._say("evaluation", step=self.step, epoch=number, **figures)
        self.network.train()

    def state(self) -> LoopState:
        """Return everything that decides how the training continues; tensors are not copied."""
        optimizer, slots = state.pack_optimizer(self.optimizer)
        generators, own = state.pack_generators(self.ranks.device)
        window = {"loss": self._window.loss, "error": self._window.error}
        own |= state.with_prefix("window", window)
        own |= state.with_prefix("statistics", state.running_statistics(self.network))
        meta: dict[str, Any] = {
            "step": self.step,
            "refreshes": self.refreshes,
            "best": self.best,
            "unscored": self.unscored,
            "examples": self._window.examples,
            "schedule": {k: asdict(self.schedule)[k] for k in ("falls", "stale", "best")},
            "optimizer": optimizer,
        }
        if self.natural is not None:
            natural = self.natural.state_dict()
            meta["natural"] = natural["meta"]
            own |= state.with_prefix("natural", natural["tensors"])
        shared = {"network": dict(self.network.state_dict()), "optimizer": slots}
        return LoopState(meta, shared, generators, own)

    def restore(self, saved: Checkpoint) -> None:
        """Load a checkpoint, which may be from another number of ranks."""
        meta, rank = saved.meta, self.ranks.rank
        everybody = saved.ranks == self.ranks.size
        parts = [saved.own(r) for r in ([rank] if everybody else range(saved.ranks))]
        tensors = [part for _, part in parts]
        self.network.load_state_dict(saved.shared("network"), strict=True)
        state.unpack_optimizer(self.optimizer, meta["optimizer"], saved.shared("optimizer"))
        statistics = [state.under("statistics", part) for part in tensors]
        windows = [state.under("window", part) for part in tensors]
        with torch.no_grad():
            for name, value in state.running_statistics(self.network).items():
                value.copy_((statistics[0] if everybody else state.average(statistics))[name])
            for name, value in (("loss", self._window.loss), ("error", self._window.error)):
                if everybody or rank == 0:
                    value.copy_(torch.stack([window[name] for window in windows]).sum(0))
        if self.natural is not None:
            moments = [state.under("natural", part) for part in tensors]
            taken = moments[0] if everybody else shared_moments(moments, rank)
            self.natural.load_state_dict({"meta": meta["natural"], "tensors": taken})
        if everybody or rank < saved.ranks:
            numbers, own = parts[0 if everybody else rank]
            state.unpack_generators(numbers, own, self.ranks.device)
        else:
            torch.manual_seed(self.config.seed + rank)
        self.step, self.refreshes = int(meta["step"]), int(meta["refreshes"])
        self.best, self.unscored = dict(meta["best"]), bool(meta["unscored"])
        self._window.examples = int(meta["examples"])
        schedule, best = meta["schedule"], meta["schedule"]["best"]
        self.schedule.falls, self.schedule.stale = int(schedule["falls"]), int(schedule["stale"])
        self.schedule.best = None if best is None else (float(best[0]), float(best[1]))

    def _refreshed(self, report: prong.RefreshReport | None) -> None:
        if report is not None:
            self.refreshes += 1
            self._say("refresh", step=self.step, layers=conditioning_rows(report, network.BODY))
            faults.point("train.refreshed")

    def _say(self, kind: str, **values: object) -> None:
        if self.emit is not None:
            self.emit(kind, **values)


def save(directory: Path, spec: network.NetworkSpec, trained: nn.Module) -> None:
    """Write a trained network for the later stages."""
    directory.mkdir(parents=True, exist_ok=True)
    network.save(directory, spec, trained.state_dict())
