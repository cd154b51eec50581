"""Options under which a run is exact, for tests that compare numbers to the last digits.

The defaults are quick instead: float32, P by its leading directions, layers that take turns. A test
about one of them says so itself, after these: `{**EXACT, "mode": "preconditioned"}`.
"""

from __future__ import annotations

from dataclasses import fields

import torch

import prong
from prong.extensions.side_stream import gather_on_side_stream

EXACT = {
    "mode": "fold",
    "decomposition_dtype": torch.float64,
    "leading": None,
    "spread": False,
    "early": False,
    "damping": 1e-2,
}
_WHITENING = {field.name for field in fields(prong.Whitening)}
_SAVINGS = {field.name for field in fields(prong.Savings)}


def reparametrizer(model, optimizer, **options):
    """A `prong.Reparametrizer`; options of `Whitening` and `Savings` stand among the others."""
    whitening = {name: options.pop(name) for name in _WHITENING & set(options)}
    savings = {name: options.pop(name) for name in _SAVINGS & set(options)}
    beside = options.pop("side_stream", False)
    made = prong.Reparametrizer(
        model,
        optimizer,
        whitening=prong.Whitening(**whitening),
        savings=prong.Savings(**savings),
        **options,
    )
    if beside:
        gather_on_side_stream(made)
    return made
