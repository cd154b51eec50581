"""Inputs that a narrow layer leaves to be counted later, together with those of other layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_ASIDE = 16


class Aside:
    """Where a layer that runs in a batch of layers puts its inputs; a copied layer has none."""

    def __init__(self) -> None:
        """Begin empty."""
        self.inputs: list[tuple[Tensor, int]] = []

    def __deepcopy__(self, memo: object) -> None:
        """A copy belongs to nobody who would multiply its gradients by P."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Likewise for what is stored."""
        return type(None), ()
