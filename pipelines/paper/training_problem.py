"""What is trained, without the method, and in which order, and how varied, its images come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.paper.compared_methods import device

Figures = Mapping[str, float]
INITIAL = 2000
"""Images that a whitened network is initialised with."""
STEPS, AUGMENTED, PLAIN = "steps", "augmented", "plain"
"""Where whitening statistics come from: the training steps themselves, or images that are drawn
anew at each reparametrisation, varied like those of the steps or as they are."""


@dataclass(frozen=True)
class TrainingProblem:
    """What is trained, without the method.

    Attributes:
        network: Makes the network; torch is seeded before.
        inputs: Of the network [n, ...], or what `vary` makes them of.
        targets: Whatever `loss` takes beside the outputs [n, ...].
        loss: Mean loss of a batch from outputs and targets.
        examples: Budget: examples that a training sees.
        marks: How often figures are measured, the end included.
        measure: Figures of a model in evaluation mode.
        begin: Called with the network and its inputs before the method is attached.
        before: Further figures of the attached model before it is initialised.
        observe: Further figures at each mark; its time does not count.
        vary: Makes inputs of the network from a batch of `inputs`, each time others.
        plain: Makes them without chance.
    """

    network: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    examples: int
    marks: int
    measure: Callable[[nn.Module], Figures]
    begin: Callable[[nn.Module], None] = lambda model: None
    before: Callable[[nn.Module], Figures] = lambda model: {}
    observe: Callable[[nn.Module], Figures] = lambda model: {}
    vary: Callable[[Tensor, torch.Generator], Tensor] = lambda batch, drawn: batch
    plain: Callable[[Tensor], Tensor] = lambda batch: batch

    def taken(self, chosen: Tensor, drawn: torch.Generator | None) -> Tensor:
        """Return inputs of the network where it is trained.

        Args:
            chosen: Positions in `inputs`.
            drawn: Varies them; None: as they are.
        """
        images = self.inputs[chosen.to(self.inputs.device)]
        made = self.plain(images) if drawn is None else self.vary(images, drawn)
        return made.to(device())

    def initial(self, seed: int, batch: int, statistics: str) -> list[Tensor]:
        """Return the batches that a whitened network is initialised with.

        Args:
            seed: Of the training.
            batch: Images in each.
            statistics: See `STEPS`.
        """
        first = torch.arange(min(INITIAL, len(self.inputs)))
        drawn = None if statistics == PLAIN else drawn_at(seed, 0, stream=1)
        return [self.taken(part, drawn) for part in torch.split(first, batch)]


def order_of(seed: int, count: int) -> Iterator[int]:
    """Yield positions of images without end, each epoch in another order."""
    for epoch in itertools.count():
        drawn = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
        yield from torch.randperm(count, generator=drawn).tolist()


def drawn_at(seed: int, update: int, stream: int) -> torch.Generator:
    """Return where the chance of an update comes from, so that a resumed training has the same."""
    return torch.Generator().manual_seed(((seed + 1) * 1_000_003 + update) * 2 + stream)


class StatisticsBatches:
    """Batches for whitening statistics, drawn anew each time they are iterated."""

    def __init__(
        self,
        problem: TrainingProblem,
        seed: int,
        batch: int,
        varied: bool,
        update: Callable[[], int],
    ) -> None:
        """Take what decides them.

        Args:
            problem: Whose inputs they are.
            seed: Of the training.
            batch: Images in each.
            varied: Whether they are varied like those of the steps.
            update: Says how many updates are made: the same update has the same batches.
        """
        self._problem, self._seed, self._batch = problem, seed, batch
        self._varied, self._update = varied, update

    def __iter__(self) -> Iterator[Tensor]:
        """Yield inputs of the network."""
        drawn = drawn_at(self._seed, self._update(), stream=1)
        chosen = torch.randperm(len(self._problem.inputs), generator=drawn)[:INITIAL]
        for part in torch.split(chosen, self._batch):
            yield self._problem.taken(part, drawn if self._varied else None)
