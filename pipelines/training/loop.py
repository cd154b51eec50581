"""The training loop of one rank: Algorithm 1 of the paper around a stochastic gradient method."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import prong
from pipelines.config import TrainConfig
from pipelines.data.prepared import Card, load_card, load_split
from pipelines.errors import UserError
from pipelines.training import batches, methods, network
from pipelines.training.events import EventWriter
from pipelines.training.parallel import Ranks
from pipelines.training.schedule import Waterfall

LOG_EVERY = 10
"""Steps behind each logged average of training loss and error."""


@dataclass
class _Window:
    """Sums since the last logged point, on the device, so that logging waits for it rarely."""

    loss: Tensor
    wrong: Tensor
    images: int = 0
    start: float = field(default_factory=time.perf_counter)


class Loop:
    """A training in progress on one rank.

    Args:
        config: Method and schedule.
        prepared: Directory of prepared images.
        ranks: This process among its peers.
        emit: Where events go; only rank 0 speaks.
    """

    def __init__(
        self, config: TrainConfig, prepared: Path, ranks: Ranks, emit: EventWriter | None
    ) -> None:
        self.config, self.ranks, self.emit = config, ranks, emit
        card = load_card(prepared)
        self.spec = _spec(config, card)
        torch.manual_seed(config.seed)  # the same initial weights on every rank
        self.network = network.build(self.spec).to(ranks.device)
        self.optimizer = methods.optimizer(config, self.network)
        self.natural = methods.reparametrizer(config, self.network, self.optimizer)
        train, validation = load_split(prepared, "train"), load_split(prepared, "validation")
        self.images, self.labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
        self.validation = (
            torch.from_numpy(validation.images),
            torch.from_numpy(validation.labels),
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

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * batches.steps_per_epoch(len(self.images), self.config.batch)

    def _epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        config, ranks = self.config, self.ranks
        for images, labels, size in batches.epoch(
            self.images,
            self.labels,
            batch=config.batch,
            augment=config.augment,
            flip=config.flip,
            seed=config.seed,
            number=number,
            rank=ranks.rank,
            ranks=ranks.size,
        ):
            yield images.to(ranks.device), labels.to(ranks.device), size

    def run(self) -> dict[str, float]:
        """Train for all epochs and return the best validation figures.

        Raises:
            UserError: If the loss is no longer a number.
        """
        if self.natural is not None:
            samples = (images for images, _, _ in self._epoch(0))
            self._refreshed(self.natural.initialize(samples, init=self.config.init))
        for number in range(self.config.epochs):
            self._train(number)
            self._evaluate(number)
        return self.best

    def _train(self, number: int) -> None:
        self.network.train()
        window = self._window()
        for images, labels, size in self._epoch(number):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            logits = self.network(images)
            # Divided by the global batch: the ranks' gradients add up to the whole batch's.
            loss = functional.cross_entropy(logits, labels, reduction="sum") / size
            loss.backward()  # type: ignore[no-untyped-call]
            self.ranks.reduce_gradients(self.network.parameters())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.natural is not None:
                self._refreshed(self.natural.step())
            window.loss += loss.detach() * size
            window.wrong += (logits.detach().argmax(1) != labels).sum()
            window.images += size
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                window = self._log(window, number)

    def _window(self) -> _Window:
        zero = torch.zeros((), device=self.ranks.device)
        return _Window(zero.clone(), zero.clone())

    def _log(self, window: _Window, number: int) -> _Window:
        totals = self.ranks.sum_(torch.stack([window.loss, window.wrong])) / window.images
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
            samples_per_second=round(window.images / seconds, 1),
        )
        return self._window()

    @torch.no_grad()
    def _evaluate(self, number: int) -> None:
        """Score the validation split, feed the schedule, and remember the best figures."""
        self.ranks.average_buffers(self.network)
        self.network.eval()
        images, labels = self.validation
        mine = batches.slice_of(len(images), self.ranks.rank, self.ranks.size)
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        for part, answer in zip(
            torch.split(images[mine], 256), torch.split(labels[mine], 256), strict=True
        ):
            logits = self.network(part.to(self.ranks.device))
            answer = answer.to(self.ranks.device)
            sums[0] += functional.cross_entropy(logits, answer, reduction="sum")
            sums[1] += (logits.argmax(1) != answer).sum()
        loss, error = (self.ranks.sum_(sums) / len(images)).tolist()
        figures = {
            "validation_loss": round(loss, 6),
            "validation_error": round(100 * error, 4),
        }
        if self.schedule.evaluated(error, loss):
            self.best = {**figures, "epoch": number + 1}
        self._say("evaluation", step=self.step, epoch=number + 1, **figures)

    def _refreshed(self, report: prong.RefreshReport | None) -> None:
        if report is not None:
            self.refreshes += 1
            self._say("refresh", step=self.step, layers=_conditioning(report))

    def _say(self, kind: str, **values: object) -> None:
        if self.emit is not None:
            self.emit(kind, **values)


def _conditioning(report: prong.RefreshReport) -> list[dict[str, object]]:
    """Return what a reparametrisation did, a row per layer that it updated."""
    return [
        {
            "layer": name,
            "condition_before": layer.condition_before,
            "condition_after": layer.condition_after,
            "whitening_error_before": layer.whitening_error_before,
            "whitening_error": layer.whitening_error,
            "seconds": layer.seconds,
            "samples": layer.samples,
            "fallback": layer.fallback,
        }
        for name, layer in report.layers.items()
    ]


def _spec(config: TrainConfig, card: Card) -> network.NetworkSpec:
    return network.NetworkSpec(
        method=config.method,
        size=card.size,
        channels=card.channels,
        classes=card.classes,
        mean=card.mean,
        deviation=card.deviation,
        width=config.width,
        hidden=config.hidden,
    )


def save(directory: Path, spec: network.NetworkSpec, trained: nn.Module) -> None:
    """Write a trained network where the later stages look for it."""
    directory.mkdir(parents=True, exist_ok=True)
    network.save(directory, spec, trained.state_dict())
