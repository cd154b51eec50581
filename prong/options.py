"""The options of a reparametrisation, in small groups that check their values on creation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import torch

from prong.linalg.roots import ROOTS

WhiteningKind = Literal["full", "diagonal", "centring"]
KINDS: tuple[str, ...] = get_args(WhiteningKind)
MomentumRule = Literal["reset", "gradient"]
MOMENTUM_RULES: tuple[str, ...] = get_args(MomentumRule)
Statistics = Literal["empirical", "sampled"]
STATISTICS: tuple[str, ...] = get_args(Statistics)
INITS = ("balanced", "whitened", "preserve")


@dataclass(frozen=True)
class Whitening:
    """How the inputs of layers are whitened.

    Attributes:
        kind: "full" whitens; "diagonal" only divides by standard deviations; "centring" only
            subtracts the mean, U = I (section 3.4).
        root: "pca" (Eq. 7), "zca", "cholesky" or "newton-schulz". "auto" means "pca" with
            `batch_diagonal`, else "cholesky" for `torch.optim.SGD`, whose path does not depend on
            the root, and "zca" for every other optimizer.
        momentum: "gradient" transforms the optimizer's momentum into the new basis; "reset" clears
            it, as the paper does.
        positions: the largest number of pixels or tokens of an example that become samples; None
            for all.
        decomposition_dtype: type of the first attempt at a decomposition, torch.float32 or
            torch.float64. A layer of a wider type uses its own type. If the first attempt fails,
            the second is in float64.
        batch_diagonal: whether the per-batch diagonal D of section 3.2 is applied at every step.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a value is not among those allowed.
    """

    kind: str = "full"
    root: str = "auto"
    momentum: str = "gradient"
    positions: int | None = 64
    decomposition_dtype: torch.dtype = torch.float32
    batch_diagonal: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        check_name("kind", self.kind, KINDS)
        check_name("root", self.root, ("auto", *ROOTS))
        check_name("momentum", self.momentum, MOMENTUM_RULES)
        if self.positions is not None:
            check_positive("positions", self.positions, int)
        if self.decomposition_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"decomposition_dtype={self.decomposition_dtype}: "
                "allowed are torch.float32 and torch.float64"
            )


@dataclass(frozen=True)
class Savings:
    """Savings of time and memory that change the result little.

    Attributes:
        leading: in preconditioned layers, P uses only the directions of Σ whose eigenvalues exceed
            `leading` · ε, where that is cheaper than the whole P. None for the whole P. It has no
            effect in other modes.
        spread: True spreads the layers' reparametrisations over the T steps of a period. Each layer
            still has one every T steps, with statistics from the steps just before. No single step
            takes much longer, and few statistics are in memory at a time. A model that is already
            compiled ignores `spread` and `leading`, because each of them would cause recompilation.
        early: True also reparametrises all layers at steps 10, 20, 40, 80 … of the first period,
            because the statistics change fastest at the beginning.

    Raises:
        TypeError: if `leading` is not a number.
        ValueError: if `leading` is not positive.
    """

    leading: float | None = 0.3
    spread: bool = True
    early: bool = True

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        if self.leading is not None:
            check_positive("leading", self.leading, float)

    def compiled(self) -> Savings:
        """Return the options for a compiled model, without those that cause recompilation."""
        return Savings(leading=None, spread=False, early=self.early)


@dataclass(frozen=True)
class TwoSided:
    """Whitening of the back-propagated gradients as well, W = Rᵀ V U (footnote 4).

    Attributes:
        statistics: "empirical" uses the gradients of the loss. "sampled" uses gradients for labels
            drawn from the model's predictions; call `Reparametrizer.sample_fisher` at every step.
        damping: γ, in units of the mean eigenvalue of E[δδᵀ].
        normalized: whether R is scaled so that the mean eigenvalue of RᵀR is 1. The learning rate
            then keeps its scale, and the result does not depend on loss scaling or on the loss's
            reduction.

    Raises:
        TypeError: if `damping` is not a number.
        ValueError: if a value is not among those allowed.
    """

    statistics: str = "empirical"
    damping: float = 0.1
    normalized: bool = True

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        check_name("statistics", self.statistics, STATISTICS)
        check_positive("damping", self.damping, float)


@dataclass(frozen=True)
class SolveSettings:
    """The settings of a reparametrisation, with every "auto" replaced by its choice.

    Attributes:
        kind: see `Whitening`.
        root: one of `prong.linalg.roots.ROOTS`.
        momentum: see `Whitening`.
        decomposition_dtype: see `Whitening`.
        damping: ε, in the units of Σ.
        leading: see `Savings`.
        two_sided: see `TwoSided`; None for R = I.
    """

    kind: str
    root: str
    momentum: str
    decomposition_dtype: torch.dtype
    damping: float
    leading: float | None = None
    two_sided: TwoSided | None = None

    def for_layer(self, dtype: torch.dtype) -> SolveSettings:
        """Return the settings for a layer whose Φ is of `dtype`: never decompose in less."""
        wider = torch.promote_types(self.decomposition_dtype, dtype)
        return replace(self, decomposition_dtype=wider)


def check_name(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError if `value` is not one of the allowed names."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}: allowed are {', '.join(allowed)}")


def check_positive(argument: str, value: object, kind: type) -> None:
    """Raise TypeError or ValueError if `value` is not a positive number of type `kind`."""
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{argument}={value!r}: a positive {kind.__name__} is needed")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{argument}={value!r}: it must be positive and finite")


def check_numbers(period: int, samples: int, damping: float, step_limit: float | None) -> None:
    """Raise an error if a value is not a positive number; `step_limit` may be None."""
    check_positive("period", period, int)
    check_positive("samples", samples, int)
    check_positive("damping", damping, float)
    if step_limit is not None:
        check_positive("step_limit", step_limit, float)


_Group = TypeVar("_Group", Whitening, Savings, TwoSided)


def check_group(
    argument: str, value: _Group | None, kind: type[_Group], first: str
) -> _Group | None:
    """Raise TypeError if `value` is not a group of type `kind`; a plain name is no longer valid."""
    if value is None or isinstance(value, kind):
        return value
    wanted = kind.__name__
    hint = f"prong.{wanted}({first}={value!r})" if isinstance(value, str) else f"a prong.{wanted}"
    raise TypeError(f"{argument}={value!r}: {hint} is needed")


def settings_of(
    whitening: Whitening,
    savings: Savings,
    two_sided: TwoSided | None,
    damping: float,
    plain_sgd: bool,
) -> SolveSettings:
    """Combine the groups of options into settings, and choose the root."""
    root = whitening.root
    if root == "auto":
        # D scales single whitened units, so its effect depends on the root: the paper's is "pca".
        # The path of SGD does not depend on the root, so it gets the cheapest. With the other
        # optimizers the symmetric root generalises best.
        root = "pca" if whitening.batch_diagonal else "cholesky" if plain_sgd else "zca"
    return SolveSettings(
        kind=whitening.kind,
        root=root,
        momentum=whitening.momentum,
        decomposition_dtype=whitening.decomposition_dtype,
        damping=damping,
        leading=savings.leading if whitening.kind == "full" else None,
        two_sided=two_sided,
    )


_WHITENING = ("root", "momentum", "positions", "decomposition_dtype", "batch_diagonal")
_MOVED = {
    **{name: f"whitening=prong.Whitening({name}=…)" for name in _WHITENING},
    **{name: f"savings=prong.Savings({name}=…)" for name in ("leading", "spread", "early")},
    "precision": "whitening=prong.Whitening(decomposition_dtype=…)",
    "output_damping": "two_sided=prong.TwoSided(damping=…)",
    "output_normalized": "two_sided=prong.TwoSided(normalized=…)",
    "clip": "step_limit=…",
    "side_stream": "prong.extensions.side_stream.gather_on_side_stream(natural)",
}
_REMOVED = ("relative", "refit")


def refuse_old_keywords(given: dict[str, object]) -> None:
    """Raise an error that names the new place of a keyword that was moved.

    Raises:
        TypeError: if there is any keyword in `given`.
    """
    for name, value in given.items():
        if name in _MOVED:
            raise TypeError(f"{name}={value!r}: it is {_MOVED[name]} now")
        if name in _REMOVED:
            raise TypeError(
                f"{name}={value!r}: it brought no benefit and was removed (docs/log.md)"
            )
        raise TypeError(f"{name}={value!r}: Reparametrizer has no such argument")
