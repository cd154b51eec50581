"""How much of a model `whiten` reached, for its log and its warning."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

from torch import nn

from prong.layers.base import Whitened
from prong.layers.twins import TWINS
from prong.reasons import plain_reasons

_log = logging.getLogger("prong")
_NAMED = 10
_WORDS = ("weight", "proj", "kernel")


@dataclass(frozen=True)
class ShareWhitened:
    """Layers that multiply by a matrix, and which of them are whitened.

    Attributes:
        layers: how many there are.
        whitened: how many of them are whitened.
        parameters: numbers that they hold; a shared parameter counts once.
        whitened_parameters: those in whitened layers.
        plain: "name (Kind): reason" of each that stays plain.
    """

    layers: int
    whitened: int
    parameters: int
    whitened_parameters: int
    plain: tuple[str, ...]

    @property
    def share(self) -> float:
        """Whitened parameters over all of these layers."""
        return self.whitened_parameters / max(1, self.parameters)

    def __str__(self) -> str:
        """The line of the log."""
        told = (
            f"whitened {self.whitened} of {self.layers} layers, {self.share:.1%} of the "
            "parameters of dense and convolutional layers"
        ).replace("%", " %")
        if not self.plain:
            return told
        listed = "; ".join(self.plain[:_NAMED])
        more = len(self.plain) - _NAMED
        rest = f"; and {more} more (prong.coverage lists all)" if more > 0 else ""
        return f"{told}; left plain: {listed}{rest}"


def share_whitened(model: nn.Module) -> ShareWhitened:
    """Count the layers of a whitened model that multiply by a matrix."""
    reasons = plain_reasons(model)
    plain: list[str] = []
    numbers: dict[int, tuple[int, bool]] = {}
    seen: dict[nn.Module, bool] = {}
    for name, module in model.named_modules():
        if name not in reasons or not _multiplies(module):
            continue
        done = seen[module] = isinstance(module, Whitened)
        if not done:
            plain.append(f"{name or 'model'} ({type(module).__name__}): {reasons[name]}")
        # Of a parametrized layer what lies below, which its weight is computed from.
        dense = isinstance(module, (Whitened, *TWINS))
        for held in module.parameters(recurse=dense):
            if type(held).__name__ != "UninitializedParameter":
                numbers[id(held)] = (held.numel(), done)
    return ShareWhitened(
        len(seen),
        sum(seen.values()),
        sum(number for number, _ in numbers.values()),
        sum(number for number, done in numbers.values() if done),
        tuple(plain),
    )


def tell(model: nn.Module, *, chosen: bool) -> None:
    """Log what was whitened, and warn if it is less than half and nobody asked for that.

    Args:
        model: the whitened model.
        chosen: whether the caller said which layers to whiten.
    """
    found = share_whitened(model)
    _log.info("%s", found)
    if found.share < 0.5 and not chosen:
        warnings.warn(
            f"{found}. Less than half is whitened: with include or exclude it is taken as wanted",
            UserWarning,
            stacklevel=3,
        )


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has a matrix of its own that is no table and no norm's scale.

    Dense and convolutional layers, also their subclasses and parametrized ones; and of others those
    with a parameter of two dimensions or more that is called a weight, a projection or a kernel:
    attention, recurrent layers, layers of other libraries.
    """
    if isinstance(module, (Whitened, *TWINS)):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "Norm" in type(module).__name__:
        return False
    return any(
        held is not None
        and type(held).__name__ != "UninitializedParameter"
        and held.dim() >= 2
        and any(word in name for word in _WORDS)
        for name, held in module._parameters.items()
    )
