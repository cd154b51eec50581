"""A reparametrisation shared by the ranks: each unit has an owner, which computes and sends Φ.

Two machines may round differently, and ranks with different bits would drift apart. Therefore one
rank, the owner, computes the result of each unit. There are three rounds. Each is the same sequence
of collectives on every rank, independent of the data:

1. a small sum of the counts and means of all units;
2. for each unit, a sum of the scatter's triangle on the unit's owner;
3. for each unit, a broadcast of the result from its owner.

Where one large unit would be much more than an equal part of the work, a fourth round exchanges
rows of its momentum, which several ranks transform (`prong.refresh.shared_transport`).

The collectives of these rounds run while other units are packed and decomposed. In a single
process the rounds do nothing, and the statistics are used without a copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from prong.distributed.assignment import Assignment, assign_divided, refresh_cost
from prong.distributed.merging import Merge
from prong.linalg.dtypes import wide_dtype
from prong.linalg.preconditioner import LowRank
from prong.options import SolveSettings
from prong.refresh.messages import Message, Part, numbers_part, unit_parts
from prong.refresh.optimizer_state import (
    carry_gradients,
    carry_state,
    drop_lost_state,
    reset_state,
    waiting_gradients,
)
from prong.refresh.refresh_report import LayerReport
from prong.refresh.result import NOT_FINITE, NOT_GATHERED, Told
from prong.refresh.shared_transport import SharedTransport
from prong.refresh.solve import BALANCED, find_phi, group_damping, put_in
from prong.refresh.solve_preconditioner import find_preconditioner, install
from prong.refresh.step_control import weight_norm
from prong.refresh.window import stop_gathering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.distributed.ranks import Ranks
    from prong.linalg.projection import Phi
    from prong.refresh.step_control import StepControl
    from prong.refresh.tied_layers import TiedLayers
    from prong.statistics.moments import Moments

KINDS = ("moments", "backward_moments")


def assignment(units: Sequence[TiedLayers], whitening: SolveSettings, ranks: int) -> Assignment:
    """Assign all units of a model to owners; a frozen unit has cost 0."""
    costs, parts = [], []
    for unit in units:
        layer = unit.layer
        groups, features = layer.mean.shape
        outputs = unit.weight.numel() // (groups * features)
        output = layer.output_whitener
        cost = refresh_cost(
            groups,
            features,
            outputs,
            root=whitening.root,
            preconditioned=layer.preconditioned,
            full=whitening.kind == "full",
            momentum=whitening.momentum != "reset",
            two_sided=0 if output is None else output.shape[1],
        )
        costs.append(cost if unit.weight.requires_grad else 0.0)
        shared = layer.preconditioned and whitening.kind == "full" and whitening.momentum != "reset"
        momentum = 2.0 * groups * outputs * features**2
        parts.append(momentum if shared and unit.weight.requires_grad else 0.0)
    return assign_divided(costs, parts, ranks)


@dataclass
class _Turn:
    """The state of one unit during the rounds."""

    unit: TiedLayers
    owner: int
    own: bool
    told: Told
    damping: Tensor | None
    merges: dict[str, Merge] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    old: Phi | None = None
    transport: SharedTransport | None = None


class Refresh:
    """Computes a new Φ for units, and transforms their parameters and momentum (lines 7 to 10).

    Args:
        whitening: the settings.
        ranks: the processes that share the statistics and the work.
        optimizers: the optimizers whose state is transformed into the new basis.
        dampings: a dict that receives the damping of each unit, `[groups]` by name, for the
            per-batch D; None without D.
        control: the step control, which receives ‖V‖.
        init: "preserve" keeps the function, "balanced" keeps it up to a gain, and "whitened" keeps
            the numbers in V.
        spent: by `id`, the parameters whose gradient a step has used. All other gradients are
            transformed too. None if there are no gradients to transform.
    """

    def __init__(
        self,
        whitening: SolveSettings,
        ranks: Ranks,
        optimizers: Sequence[Optimizer],
        dampings: dict[str, Tensor] | None,
        control: StepControl,
        init: str = "preserve",
        spent: set[int] | None = None,
    ) -> None:
        """Store the settings."""
        self.spent = spent
        self.whitening, self.ranks, self.optimizers = whitening, ranks, optimizers
        self.dampings, self.control, self.init = dampings, control, init
        # With leading directions the length of the result is known only after the decomposition.
        self._late = whitening.leading is not None

    @torch.no_grad()
    def __call__(
        self, units: Sequence[TiedLayers], owners: Assignment, everybody: Sequence[TiedLayers]
    ) -> tuple[dict[str, LayerReport], list[str]]:
        """Reparametrise, and delete the statistics.

        Args:
            units: the units to reparametrise.
            owners: the owners of all units of the model.
            everybody: all units, in the order of `owners`.

        Returns:
            A report for each of `units`, and notes about optimizer state that had to be reset; the
            same on every rank, except for the seconds.
        """
        reports: dict[str, LayerReport] = {}
        turns: dict[int, _Turn] = {}
        for unit in units:
            gathered = any(layer.moments is not None for layer in unit.layers)
            reports[unit.name] = LayerReport(unit.name, False, NOT_GATHERED)
            if not unit.weight.requires_grad:
                reports[unit.name] = LayerReport(unit.name, False, "frozen")
            elif gathered:
                job = everybody.index(unit)
                turns[job] = self._turn(unit, owners.owners[job], owners.helpers_of(job))
        ordered = [turns[job] for job in owners.order if job in turns]
        if self.ranks.size > 1:
            self._merge(ordered)
        for turn in ordered:
            if turn.owner == self.ranks.index:
                self._decide(turn)
            stop_gathering(turn.unit.layers)
            self._tell(turn)
        for turn in ordered:
            self._tell_late(turn)
        for turn in ordered:
            self._take_over(turn)
        for turn in ordered:
            if turn.transport is not None:
                turn.transport.finish()
        notes: list[str] = []
        for turn in turns.values():
            unit, result = turn.unit, turn.told.result
            reports[unit.name] = result.report(unit.name)
            if result.updated:
                notes += turn.notes
        return reports, notes

    def _turn(self, unit: TiedLayers, owner: int, helpers: Sequence[tuple[int, float]]) -> _Turn:
        layer = unit.layer
        kept = self.init in ("preserve", "balanced")
        own = layer.preconditioned and kept and self.whitening.kind == "full"
        told = Told(layer.mean.device)
        damping = None
        if self.dampings is not None:
            groups, device = len(layer.mean), layer.mean.device
            damping = torch.zeros(groups, dtype=wide_dtype(device), device=device)
        turn = _Turn(unit, owner, own, told, damping)
        if own and helpers:
            turn.transport = SharedTransport(unit, helpers)
        if self.spent is not None and waiting_gradients(unit, self.spent):
            turn.old = unit.wide_phi()
        return turn

    def _merge(self, turns: Sequence[_Turn]) -> None:
        """Run the first round, and start the second."""
        for turn in turns:
            layers = turn.unit.layers
            for kind in KINDS:
                parts: list[Moments] = [m.settle() for each in layers if (m := getattr(each, kind))]
                if parts:
                    narrow = turn.own and len(layers) == 1
                    mean = parts[0].mean
                    dtype = mean.dtype if narrow else wide_dtype(mean.device)
                    turn.merges[kind] = Merge(parts, dtype)
        merges = [merge for turn in turns for merge in turn.merges.values()]
        if not merges:
            return
        flat = self.ranks.sum_(torch.cat([merge.sums for merge in merges]))
        totals = iter(torch.split(flat, [len(merge.sums) for merge in merges]))
        for turn in turns:
            for merge in turn.merges.values():
                merge.send(next(totals), self.ranks, turn.owner)
            stop_gathering(turn.unit.layers)

    def _moments(self, turn: _Turn, kind: str) -> Moments | None:
        if self.ranks.size == 1:
            return turn.unit.moments(kind, widened=not turn.own or kind != "moments")
        merge = turn.merges.get(kind)
        return None if merge is None else merge.moments()

    def _decide(self, turn: _Turn) -> None:
        """Do the owner's work on a unit: decompose, and compute all results."""
        unit, whitening = turn.unit, self.whitening
        moments, deltas = (self._moments(turn, kind) for kind in KINDS)
        start = time.perf_counter()
        drawn = [bias.clone() for bias in unit.biases]
        assert moments is not None
        if turn.own:
            result, preconditioner, mean = find_preconditioner(unit, moments, whitening)
            if preconditioner is not None and not install(
                unit,
                preconditioner,
                mean,
                self.optimizers,
                whitening.momentum,
                transport=turn.transport is None,
            ):
                result.refuse(NOT_FINITE, "kept")
        else:
            old = unit.wide_phi()
            result, phi = find_phi(unit, moments, whitening, deltas)
            if phi is not None:
                put_in(unit, old, phi, self.init, result)
                if result.updated:
                    carry_state(self.optimizers, unit, old, phi, whitening.momentum)
            if turn.damping is not None and result.updated:
                turn.damping.copy_(group_damping(moments, whitening))
        norm = weight_norm(unit)
        if result.updated and self.init == "balanced":
            norm = norm * balance(unit, norm, float(result.damping), drawn)
        result.weight_norm = norm
        held = unit.layer.preconditioner
        result.seconds, result.rank = time.perf_counter() - start, self.ranks.index
        result.columns = held.directions.shape[2] if isinstance(held, LowRank) else -1
        turn.told.put(result)

    def _tell(self, turn: _Turn) -> None:
        """Start the third round, for the parts whose length every rank knows."""
        if self.ranks.size == 1:
            return
        parts = [numbers_part(turn.told)]
        if not self._late:
            parts += self._parts(turn)
        self._send(turn, parts)

    def _tell_late(self, turn: _Turn) -> None:
        """Start the third round for the other parts of updated units, once the length is known."""
        if self.ranks.size == 1 or not self._late:
            return
        turn.messages[0].finish(owner=turn.owner == self.ranks.index)
        turn.messages.clear()
        if turn.told.result.updated:
            self._send(turn, self._parts(turn))

    def _parts(self, turn: _Turn) -> list[Part]:
        return unit_parts(
            turn.unit,
            self.whitening,
            self.optimizers,
            turn.told,
            turn.damping,
            own=turn.own,
            late=self._late,
            state=turn.transport is None,
        )

    def _send(self, turn: _Turn, parts: list[Part]) -> None:
        message = Message(parts, turn.unit.layer.mean.device)
        message.start(self.ranks, turn.owner)
        turn.messages.append(message)

    def _take_over(self, turn: _Turn) -> None:
        """Wait for the messages, and install the results of the other ranks."""
        mine = turn.owner == self.ranks.index
        for message in turn.messages:
            message.finish(owner=mine)
        for merge in turn.merges.values():
            merge.finish()
        # All ranks use the owner's norm, so it is bit-identical.
        self.control.measured(turn.unit, turn.told.weight_norm)
        if not turn.told.result.updated:
            return
        if turn.transport is not None:
            turn.transport.start(self.optimizers, self.ranks)
        if self.whitening.momentum != "reset":
            turn.notes = drop_lost_state(self.optimizers, turn.unit)
        elif not mine:
            reset_state(self.optimizers, turn.unit.parameters)
        if turn.old is not None and self.spent is not None:
            carry_gradients(turn.unit, turn.old, turn.unit.wide_phi(), self.spent)
        if self.dampings is not None and turn.damping is not None:
            self.dampings[turn.unit.name] = turn.damping


def balance(unit: TiedLayers, norm: Tensor, damping: float, drawn: Sequence[Tensor]) -> Tensor:
    """Multiply the weight so that a standard deviation s < ¼ becomes √(s/4); return the gain.

    s² is the mean over outputs of E(W(h − c))², that is (‖V‖² − ε‖W‖²) ÷ outputs. The biases get
    their initial numbers back, without W c, so these become the means of the pre-activations.

    Args:
        unit: the layers that share the weight, after their reparametrisation.
        norm: ‖V‖, a scalar.
        damping: ε, the mean over groups.
        drawn: the biases before the reparametrisation, one for each of `unit.biases`.
    """
    layer = unit.layer
    weight = unit.weight if layer.preconditioned else layer.fold()[0]
    undamped = norm.square() - damping * weight.to(norm.dtype).square().sum()
    deviation = (undamped.clamp(min=0) / layer.outputs).sqrt()
    gain = (BALANCED / deviation).sqrt().clamp(min=1)
    # A constant input, or a head that starts at zero, has no deviation to correct.
    gain = torch.where(deviation > 1e-6, gain, 1)
    unit.weight.mul_(gain.to(unit.weight.dtype))
    if unit.centred:
        for bias, before in zip(unit.biases, drawn, strict=True):
            bias.copy_(before)
    return gain
