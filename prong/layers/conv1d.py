"""The whitened twin of transformers' `Conv1D`, a dense layer whose weight is `[in, out]` (GPT-2).

transformers is not imported for it: the twin is made when a layer of this class is first met, or
when a stored one is loaded.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from prong.layers.autograd import NaturalLinear
from prong.layers.twins import TWINS, WhitenedDense

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from prong.layers.base import Whitened

_HOME, _NAME, _TWIN = "transformers.pytorch_utils", "Conv1D", "WhitenedConv1D"


class TransposedDense(WhitenedDense):
    """y = h W + b with W `[in, out]`, in whitened coordinates; V is stored in W's layout."""

    TRANSPOSED = True

    @property
    def centred(self) -> bool:
        """As in every dense layer, −W c goes into the bias."""
        return self.bias is not None and self.bias.requires_grad

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Apply V U (h − c) + d along the last axis."""
        self.observe(input)
        rows, preconditioner = math.prod(input.shape[:-1]), self.precision_matrix
        if (
            preconditioner is not None
            and rows < self.weight.shape[1]
            and self.exact(input, preconditioner)
        ):
            output: Tensor = NaturalLinear.apply(  # type: ignore[no-untyped-call]
                input,
                self.weight,
                self.bias,
                self.mean,
                preconditioner,
                self.precision_damping,
                None if torch.compiler.is_compiling() else self.last_pass,
                True,
            )
            return output
        if self.whitens_activations(input, rows):
            white = F.linear(input if self.bias is None else input - self.mean[0], self.whitener[0])
            return F.linear(white, self.weight.T, self.bias)
        weight, bias = self.fold()
        return self.watched(F.linear(input, weight.T, bias))

    def reset_parameters(self) -> None:
        """Draw W and b anew as transformers does, with U = I and c = 0."""
        self.clear_phi()
        nn.init.normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def learn_conv1d(model: nn.Module) -> None:
    """Add the classes of a model's `Conv1D` layers to those that have a twin."""
    for kind in {type(module) for module in model.modules()}:
        if kind.__module__ == _HOME and kind.__name__ == _NAME:
            _twin_of(kind)


def _twin_of(kind: type[nn.Module]) -> type[Whitened]:
    if kind not in TWINS:
        names = {"PLAIN": kind, "__module__": __name__, "__doc__": TransposedDense.__doc__}
        TWINS[kind] = type(_TWIN, (TransposedDense, kind), names)
    return TWINS[kind]


def __getattr__(name: str) -> type[Whitened]:
    """The twin's class, for pickle, which looks for it here in a process that never met it."""
    if name == _TWIN:
        return _twin_of(getattr(import_module(_HOME), _NAME))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
