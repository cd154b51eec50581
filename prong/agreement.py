"""One unit's reparametrisation on every rank: the first rank decides, all get its bytes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from prong.momentum import carried_tensors, carry_state, reset_state
from prong.precision import find_precision, install
from prong.refresh import Outcome, Whitening, find_phi, group_damping
from prong.report import LayerReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from prong.diagonal import BatchDiagonal
    from prong.moments import Moments
    from prong.ranks import Ranks
    from prong.units import Unit


def refresh_unit(
    unit: Unit,
    whitening: Whitening,
    ranks: Ranks,
    optimizers: Sequence[Optimizer],
    diagonal: BatchDiagonal | None,
    notes: list[str],
    init: str = "preserve",
) -> LayerReport:
    """New Φ for one unit, its parameters and momentum rewritten in it (lines 7 to 10).

    Alone, every collective does nothing. With several ranks only the first decomposes: two machines
    may round differently, and ranks that differ in a bit drift apart.

    Args:
        unit: the layers that share the Φ, with the statistics gathered in them.
        whitening: what to do.
        ranks: the processes that share the statistics.
        optimizers: whose state is to follow the basis.
        diagonal: the per-batch D, which needs to know the damping; None without.
        notes: receives what could not follow.
        init: "preserve" keeps the function, "whitened" and "scaled" the numbers in V.
    """
    start = time.perf_counter()
    own = unit.layer.canonical and init == "preserve" and whitening.kind == "full"
    moments = unit.moments(widened=not own)
    if not unit.weight.requires_grad:
        return LayerReport(unit.name, False, "frozen")
    if moments is None:
        return LayerReport(unit.name, False, "no statistics were gathered")
    ranks.merge_(moments)
    deltas = unit.moments("backward_moments")
    if deltas is not None:
        ranks.merge_(deltas)
    if own:
        outcome = _refresh_precision(unit, moments, whitening, ranks, optimizers)
        return outcome.report(unit.name, time.perf_counter() - start)
    outcome = Outcome.empty(moments.mean.device)
    old = unit.wide_phi()
    if ranks.first:
        wanted = whitening if init == "preserve" else replace(whitening, refit=None)
        outcome = find_phi(unit, moments, wanted, deltas)
        if outcome.phi is not None:
            outcome.apply(unit, old, init)
    ranks.broadcast_([outcome.numbers])
    if outcome.updated:
        if unit.layer.canonical:
            _agree_on_shape(unit, ranks)
        phi = [buffer for layer in unit.layers for buffer in layer.phi_buffers()]
        ranks.broadcast_([*phi, *(p.data for p in unit.parameters)])
        new = unit.wide_phi() if outcome.phi is None else outcome.phi
        notes += carry_state(optimizers, unit, old, new, whitening.momentum)
        ranks.broadcast_(carried_tensors(optimizers, unit))
        if diagonal is not None:
            damping = group_damping(unit, moments, whitening)
            ranks.broadcast_([damping])
            diagonal.damping[unit.name] = damping
    return outcome.report(unit.name, time.perf_counter() - start)


def _refresh_precision(
    unit: Unit,
    moments: Moments,
    whitening: Whitening,
    ranks: Ranks,
    optimizers: Sequence[Optimizer],
) -> Outcome:
    """New P for one canonical unit."""
    outcome = Outcome.empty(moments.mean.device)
    if ranks.first:
        outcome, precision, mean = find_precision(unit, moments, whitening)
        if precision is not None and not install(
            unit, precision, mean, optimizers, whitening.momentum, kept=outcome.skipped
        ):
            outcome.put(updated=0, reason=3, fallback=3)
    ranks.broadcast_([outcome.numbers])
    if outcome.updated:
        if not ranks.first and whitening.momentum == "reset":
            for optimizer in optimizers:
                reset_state(optimizer, unit.parameters)
        _agree_on_shape(unit, ranks)
        ranks.broadcast_(buffer for layer in unit.layers for buffer in layer.phi_buffers())
        ranks.broadcast_(p.data for p in unit.parameters)
        ranks.broadcast_(carried_tensors(optimizers, unit))
    return outcome


def _agree_on_shape(unit: Unit, ranks: Ranks) -> None:
    """Make room on every rank for as many leading directions as the first one found."""
    if ranks.size == 1:
        return
    layer = unit.layer
    assert layer.precision_matrix is not None
    columns = layer.precision_matrix.shape[2] if layer.precision_damping is not None else -1
    shape = torch.tensor([columns], device=layer.mean.device)
    ranks.broadcast_([shape])
    if ranks.first:
        return
    groups, features = layer.mean.shape
    found = int(shape)
    for each in unit.layers:
        each.put_precision(
            each.mean.new_zeros(groups, features, features if found < 0 else found),
            None if found < 0 else each.mean.new_ones(groups),
        )
