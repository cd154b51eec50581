"""One reparametrisation of one unit: statistics to Φ, with every failure contained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from prong.backward import TWO_SIDED
from prong.conditioning import condition_number, conditioning
from prong.momentum import MOMENTUM_RULES
from prong.projection import Phi
from prong.report import LayerReport
from prong.roots import (
    ROOTS,
    Root,
    RootFailure,
    damped,
    diagonal_root,
    whitening_root,
)

if TYPE_CHECKING:
    from torch import Tensor

    from prong.moments import Moments
    from prong.units import Unit

WhiteningKind = Literal["full", "diagonal", "centring"]
KINDS: tuple[str, ...] = get_args(WhiteningKind)
REASONS = (
    "",
    "no finite sample was seen",
    "the decomposition failed",
    "the new parameters would not be finite",
    "the input is constant, so a relative damping is zero",
)
FALLBACKS = ("", "float64", "eigh", "kept")
INITS = ("balanced", "whitened", "scaled", "preserve")
BALANCED = 0.25


@dataclass(frozen=True)
class Whitening:
    """What a reparametrisation is to do; read once at the edge.

    Attributes:
        kind: "full", "diagonal" or "centring".
        root: one of `roots.ROOTS`.
        damping: ε.
        relative: whether ε is in units of the mean eigenvalue.
        precision: type of the first attempt at a decomposition; a layer's own where that is wider.
        momentum: one of `momentum.MOMENTUM_RULES`.
        two_sided: one of `backward.TWO_SIDED`, or None for R = I.
        output_damping: γ, in units of the mean eigenvalue of E[δδᵀ].
        output_normalized: whether R is scaled to mean eigenvalue 1 of RᵀR.
        leading: eigenvalues of Σ below this share of ε count as 0 in canonical layers; None for a
            whole P.
        refit: the old U stays, and c alone is renewed, where ‖C − I‖_F/√in is at most this much
            with it; None to look for a new one every time.
    """

    kind: str
    root: str
    damping: float
    relative: bool
    precision: torch.dtype
    momentum: str
    two_sided: str | None = None
    output_damping: float = 0.1
    output_normalized: bool = True
    leading: float | None = None
    refit: float | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        for name, value, allowed in (
            ("whitening", self.kind, KINDS),
            ("root", self.root, ("auto", *ROOTS)),
            ("momentum", self.momentum, MOMENTUM_RULES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: allowed are {', '.join(allowed)}")
        if self.two_sided is not None and self.two_sided not in TWO_SIDED:
            raise ValueError(
                f"two_sided={self.two_sided!r}: allowed are {', '.join(TWO_SIDED)} and None"
            )
        if self.precision not in (torch.float32, torch.float64):
            raise ValueError(
                f"precision={self.precision}: allowed are torch.float32 and torch.float64"
            )

    def first_dtype(self, unit: Unit) -> torch.dtype:
        """The type of the first attempt for one unit: Φ in float64 would be wasted on less."""
        return torch.promote_types(self.precision, unit.layer.mean.dtype)


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
        "skipped",
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
    def skipped(self) -> bool:
        """Whether the old U was found to fit."""
        return self.get("skipped") == 1

    @property
    def kept_precision(self) -> bool:
        """Whether a canonical unit's P is that of before, in every bit."""
        return self.skipped and self.get("own") == 1

    @property
    def columns(self) -> int:
        """How many leading directions a canonical unit's P is made of; −1 for a whole P."""
        return int(self.get("columns"))

    def put(self, **values: float | Tensor) -> None:
        """Write some of the numbers."""
        for name, value in values.items():
            self.numbers[self.FIELDS.index(name)] = value

    def get(self, name: str) -> float:
        """Read one of the numbers."""
        return float(self.numbers[self.FIELDS.index(name)])

    def apply(self, unit: Unit, old: Phi, init: str) -> None:
        """Install Φ: keep the function ("preserve", "balanced") or the numbers in V."""
        assert self.phi is not None
        if init in ("preserve", "balanced"):
            if not unit.move(old, self.phi):
                self.put(updated=0, reason=3, fallback=3)
            return
        unit.keep_numbers(old, self.phi)
        if init == "scaled":
            features = self.phi.mean.numel()
            with torch.no_grad():
                unit.weight.mul_((features / max(self.get("effective_dimension"), 1e-12)) ** 0.5)

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
            skipped=self.skipped,
            seconds=self.get("seconds"),
            rank=int(self.get("rank")),
        )


def group_damping(unit: Unit, moments: Moments, whitening: Whitening) -> Tensor:
    """ε of each group in the units of Σ, `[groups]`."""
    damping = torch.full_like(moments.mean[:, 0], whitening.damping)
    if whitening.relative:
        mean = moments.mean if unit.centred else torch.zeros_like(moments.mean)
        damping = damping * moments.second_moment(mean).diagonal(dim1=1, dim2=2).mean(1)
    return damping


def find_phi(
    unit: Unit, moments: Moments, whitening: Whitening, deltas: Moments | None = None
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
    damping = group_damping(unit, moments, whitening)
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
    if whitening.refit is not None:
        condition, error = conditioning(old.whitener, fresh)
        if bool(error <= whitening.refit):
            outcome.put(skipped=1)
    whitener, inverse, fallback = old.whitener, old.inverse, ""
    dtype = whitening.first_dtype(unit)
    try:
        if not outcome.skipped:
            root = _root(covariance, damping, whitening, dtype)
            whitener, inverse, fallback = root.whitener, root.inverse, root.fallback
        outer = _output_root(deltas, whitening, dtype, outcome)
    except RootFailure:
        outcome.put(reason=2, fallback=3)
        return outcome
    if outer is None:
        outcome.phi = Phi(mean, whitener, inverse, old.output)
    else:
        outcome.phi = Phi(mean, whitener, inverse, outer.whitener, outer.inverse)
        outcome.put(output_fresh=1)
    if not outcome.skipped:
        condition, error = conditioning(whitener, fresh)
    outcome.put(
        updated=1,
        fallback=FALLBACKS.index(fallback),
        condition_after=condition,
        whitening_error=error,
        effective_dimension=_effective_dimension(covariance, damping, whitener, whitening.kind),
        damping=damping.mean(),
    )
    return outcome


def _output_root(
    deltas: Moments | None, whitening: Whitening, dtype: torch.dtype, outcome: Outcome
) -> Root | None:
    """R from the second moment of δ; None where there is nothing to go by, and R stays."""
    if deltas is None or not float(deltas.count) > 0:
        return None
    moment = deltas.second_moment(torch.zeros_like(deltas.mean))
    moment = (moment + moment.transpose(1, 2)) / 2
    scale = moment.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((scale > 0).all()):
        return None
    # In units of the mean eigenvalue: δ² may be tiny, and the loss's scale is nobody's business.
    moment = moment / scale[:, None, None]
    damping = torch.full_like(scale, whitening.output_damping)
    root = whitening_root(moment, damping, whitening.root, dtype)
    outcome.put(output_condition=condition_number(damped(moment, damping)))
    if whitening.output_normalized:
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


def _root(covariance: Tensor, damping: Tensor, whitening: Whitening, dtype: torch.dtype) -> Root:
    if whitening.kind == "centring":
        if not bool(torch.isfinite(covariance).all()):
            raise RootFailure("the covariance is not finite")
        identity = torch.eye(
            covariance.shape[-1], dtype=covariance.dtype, device=covariance.device
        ).expand_as(covariance)
        return Root(identity, identity, "")
    if whitening.kind == "diagonal":
        return diagonal_root(covariance, damping)
    return whitening_root(covariance, damping, whitening.root, dtype)
