"""One reparametrisation of one unit: statistics to Φ, with every failure contained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.conditioning import condition_number, conditioning
from prong.linalg.projection import Phi
from prong.linalg.roots import (
    Root,
    RootFailure,
    damped,
    diagonal_root,
    whitening_root,
)
from prong.options import SolveSettings
from prong.refresh.refresh_report import LayerReport

if TYPE_CHECKING:
    from torch import Tensor

    from prong.refresh.tied_layers import TiedLayers
    from prong.statistics.moments import Moments

REASONS = (
    "",
    "no finite sample was seen",
    "the decomposition failed",
    "the new parameters would not be finite",
    "the damping is too small for float32",
)
FALLBACKS = ("", "float64", "eigh", "kept")
BALANCED = 0.25


@dataclass
class Outcome:
    """What came out for one unit: Φ on the deciding rank, the numbers on every rank."""

    numbers: Tensor
    phi: Phi | None = None

    FIELDS = (
        "updated",
        "reason",
        "examples",
        "samples",
        "rejected",
        "condition_before",
        "condition_after",
        "whitening_error_before",
        "whitening_error",
        "effective_dimension",
        "damping",
        "fallback",
        "output_condition",
        "output_fresh",
        "seconds",
        "rank",
        "columns",
        "own",
        "weight_norm",
    )

    @classmethod
    def empty(cls, device: torch.device) -> Outcome:
        """Nothing yet; what the other ranks hold before they are told."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return cls(torch.full((len(cls.FIELDS),), float("nan"), dtype=dtype, device=device))

    @property
    def updated(self) -> bool:
        """Whether Φ is to be replaced."""
        return bool(self.numbers[0] == 1)

    @property
    def columns(self) -> int:
        """How many leading directions a preconditioned unit's P is made of; −1 for a whole P."""
        return int(self.get("columns"))

    def put(self, **values: float | Tensor) -> None:
        """Write some of the numbers."""
        for name, value in values.items():
            self.numbers[self.FIELDS.index(name)] = value

    def get(self, name: str) -> float:
        """Read one of the numbers."""
        return float(self.numbers[self.FIELDS.index(name)])

    def apply(self, unit: TiedLayers, old: Phi, init: str) -> None:
        """Install Φ: keep the function ("preserve", "balanced") or the numbers in V."""
        assert self.phi is not None
        if init in ("preserve", "balanced"):
            if not unit.move(old, self.phi):
                self.put(updated=0, reason=3, fallback=3)
            return
        unit.keep_numbers(old, self.phi)

    def report(self, name: str) -> LayerReport:
        """The numbers as a report."""
        return LayerReport(
            name=name,
            updated=self.updated,
            reason=REASONS[int(self.get("reason"))],
            examples=int(self.get("examples")),
            samples=int(self.get("samples")),
            rejected=int(self.get("rejected")),
            condition_before=self.get("condition_before"),
            condition_after=self.get("condition_after"),
            whitening_error_before=self.get("whitening_error_before"),
            whitening_error=self.get("whitening_error"),
            effective_dimension=self.get("effective_dimension"),
            damping=self.get("damping"),
            fallback=FALLBACKS[int(self.get("fallback"))],
            output_condition=self.get("output_condition"),
            seconds=self.get("seconds"),
            rank=int(self.get("rank")),
        )


def group_damping(moments: Moments, whitening: SolveSettings) -> Tensor:
    """ε of each group in the units of Σ, `[groups]`."""
    return torch.full_like(moments.mean[:, 0], whitening.damping)


def find_phi(
    unit: TiedLayers, moments: Moments, whitening: SolveSettings, deltas: Moments | None = None
) -> Outcome:
    """New c and U for one unit (line 9 of Algorithm 1).

    c is the mean and Σ the centred covariance where a bias can take up −W c; else c = 0 and Σ =
    E[hhᵀ].

    Args:
        unit: the layers that share the Φ.
        moments: of all their inputs, over all ranks.
        whitening: what to do.
        deltas: of all their outputs' gradients, for two-sided whitening.

    Returns:
        The new Φ and the numbers to report; without a Φ if the old one is to be kept.
    """
    outcome = Outcome.empty(moments.mean.device)
    outcome.put(
        updated=0,
        reason=0,
        fallback=0,
        examples=moments.examples,
        samples=moments.count,
        rejected=moments.rejected,
    )
    if not float(moments.count) > 0:
        outcome.put(reason=1)
        return outcome
    mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
    covariance = moments.second_moment(mean)
    covariance = (covariance + covariance.transpose(1, 2)) / 2
    damping = group_damping(moments, whitening)
    # Also below the smallest normal number of float32, where U = ε^−½ would leave its range.
    if bool((damping < torch.finfo(torch.float32).tiny).any()):
        outcome.put(reason=4)
        return outcome
    old = unit.wide_phi()
    stale = damped(moments.second_moment(old.mean), damping)
    if bool(torch.isfinite(stale).all()):
        condition, error = conditioning(old.whitener, stale)
        outcome.put(condition_before=condition, whitening_error_before=error)
    fresh = damped(covariance, damping)
    try:
        root = _root(covariance, damping, whitening)
        outer = _output_root(deltas, whitening, outcome)
    except RootFailure:
        outcome.put(reason=2, fallback=3)
        return outcome
    if outer is None:
        outcome.phi = Phi(mean, root.whitener, root.inverse, old.output)
    else:
        outcome.phi = Phi(mean, root.whitener, root.inverse, outer.whitener, outer.inverse)
        outcome.put(output_fresh=1)
    condition, error = conditioning(root.whitener, fresh)
    outcome.put(
        updated=1,
        fallback=FALLBACKS.index(root.fallback),
        condition_after=condition,
        whitening_error=error,
        effective_dimension=_effective_dimension(
            covariance, damping, root.whitener, whitening.kind
        ),
        damping=damping.mean(),
    )
    return outcome


def _output_root(deltas: Moments | None, whitening: SolveSettings, outcome: Outcome) -> Root | None:
    """R from the second moment of δ; None where there is nothing to go by, and R stays."""
    if deltas is None or whitening.two_sided is None or not float(deltas.count) > 0:
        return None
    moment = deltas.second_moment(torch.zeros_like(deltas.mean))
    moment = (moment + moment.transpose(1, 2)) / 2
    scale = moment.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((scale > 0).all()):
        return None
    # In units of the mean eigenvalue: δ² may be tiny, and the scale of the loss must not matter.
    moment = moment / scale[:, None, None]
    damping = torch.full_like(scale, whitening.two_sided.damping)
    root = whitening_root(moment, damping, whitening.root, whitening.decomposition_dtype)
    outcome.put(output_condition=condition_number(damped(moment, damping)))
    if whitening.two_sided.normalized:
        factor = root.whitener.square().sum((1, 2)).div(moment.shape[-1]).rsqrt()
    else:
        factor = scale.rsqrt()
    factor = factor[:, None, None]
    return Root(root.whitener * factor, root.inverse / factor, root.fallback)


def _effective_dimension(
    covariance: Tensor, damping: Tensor, whitener: Tensor, kind: str
) -> Tensor:
    """E‖U(h − c)‖² = tr(U Σ Uᵀ); for a full root in − ε‖U‖², without a matrix product."""
    if kind == "full":
        lost = (damping * whitener.square().sum((1, 2))).sum()
        return covariance.shape[0] * covariance.shape[1] - lost
    variances = covariance.diagonal(dim1=1, dim2=2)
    return (variances * whitener.diagonal(dim1=1, dim2=2).square()).sum()


def _root(covariance: Tensor, damping: Tensor, whitening: SolveSettings) -> Root:
    if whitening.kind == "centring":
        if not bool(torch.isfinite(covariance).all()):
            raise RootFailure("the covariance is not finite")
        identity = torch.eye(
            covariance.shape[-1], dtype=covariance.dtype, device=covariance.device
        ).expand_as(covariance)
        return Root(identity, identity, "")
    if whitening.kind == "diagonal":
        return diagonal_root(covariance, damping)
    return whitening_root(covariance, damping, whitening.root, whitening.decomposition_dtype)
