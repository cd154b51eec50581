"""When a training step is over, where several optimizers share a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer


class Rounds:
    """Counts a training step once every optimizer has stepped, or one has stepped again.

    The second rule is for optimizers that take turns, or that step at different rates.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Begin with no step made."""
        self._optimizers = list(optimizers)
        self._stepped: list[int] = []

    def made(self, optimizer: Optimizer) -> set[int] | None:
        """Note a step of one of the optimizers.

        Returns:
            If a training step is over now, the parameters whose gradients are used up, by `id`;
            else None.
        """
        index = next(i for i, each in enumerate(self._optimizers) if each is optimizer)
        again = index in self._stepped
        if again:
            self._stepped = []
        self._stepped.append(index)
        over = again or len(self._stepped) == len(self._optimizers)
        spent = self._spent() if over else None
        if len(self._stepped) == len(self._optimizers):
            self._stepped = []
        return spent

    def take(self) -> bool:
        """Whether any optimizer has stepped since this was last asked."""
        stepped, self._stepped = bool(self._stepped), []
        return stepped

    def note(self, optimizer: Optimizer) -> None:
        """Note a step for `take`."""
        self._stepped.append(id(optimizer))

    def _spent(self) -> set[int]:
        return {
            id(parameter)
            for index in self._stepped
            for group in self._optimizers[index].param_groups
            for parameter in group["params"]
        }
