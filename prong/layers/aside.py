"""Inputs of a narrow layer, stored until they are added to the moments of many layers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_ASIDE = 16


class Aside:
    """The stored inputs of a layer that is processed together with others.

    A copy of the layer has None instead, because it is not processed together with others.
    """

    def __init__(self) -> None:
        """Start with no inputs."""
        self.inputs: list[tuple[Tensor, int]] = []

    def __deepcopy__(self, memo: object) -> None:
        """Copy as None: no `SmallLayers` would multiply the gradients of the copied layer by P."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Store as None, for the same reason."""
        return type(None), ()
