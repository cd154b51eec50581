"""What may be asked of a reparametrisation, in small groups that are checked when they are made."""

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
        kind: "full"; "diagonal" divides by standard deviations only, "centring" sets U = I (section
            3.4).
        root: "pca" (Eq. 7), "zca", "cholesky", "newton-schulz"; "auto" is "cholesky" for
            `torch.optim.SGD`, whose path does not depend on the root, "zca" for every other
            optimizer, and "pca" with `batch_diagonal`.
        momentum: "gradient" carries the optimizer's momentum into the new basis; "reset" starts
            over as the paper does.
        positions: at most this many pixels or tokens of an example are samples; None for all.
        decomposition_dtype: type of the first attempt at a decomposition, torch.float32 or
            torch.float64, which is the second; a layer's own where that is wider.
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
    """What is spared, at hardly any loss.

    Attributes:
        leading: in preconditioned layers, P is made of those directions of Σ alone whose
            eigenvalues exceed this share of ε, where that is cheaper; None for the whole P. Without
            effect in other modes.
        spread: whether the layers take turns over the T steps of a period instead of being
            reparametrised all at once: each still every T steps, from the steps just before, so no
            step stalls and few statistics are held at a time. A model that was compiled before is
            always reparametrised at once, and with a whole P: every turn would be one more graph.
        early: whether all layers are reparametrised at steps 10, 20, 40, 80 … of the first period
            as well, while the first statistics age fastest.

    Raises:
        TypeError: if `leading` is not a number.
        ValueError: if it is not positive.
    """

    leading: float | None = 0.3
    spread: bool = True
    early: bool = True

    def __post_init__(self) -> None:
        """Refuse what is not allowed."""
        if self.leading is not None:
            check_positive("leading", self.leading, float)

    def compiled(self) -> Savings:
        """For a compiled model: every turn, and every number of directions, is one more graph."""
        return Savings(leading=None, spread=False, early=self.early)


@dataclass(frozen=True)
class TwoSided:
    """Whitening of the back-propagated gradients too, W = Rᵀ V U (footnote 4).

    Attributes:
        statistics: whose gradients: "empirical", those of the loss, or "sampled", those under the
            model's own predictions, which needs a call of `Reparametrizer.sample_fisher` at every
            step.
        damping: γ, in units of the mean eigenvalue of E[δδᵀ].
        normalized: whether R is scaled to mean eigenvalue 1 of RᵀR. The learning rate then keeps
            its meaning, and neither loss scaling nor the loss's reduction matters.

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
    """What a reparametrisation needs to know, with every "auto" decided.

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
        """The same for a layer whose Φ is of `dtype`: less would waste what it holds."""
        wider = torch.promote_types(self.decomposition_dtype, dtype)
        return replace(self, decomposition_dtype=wider)


def check_name(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of some names."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r}: allowed are {', '.join(allowed)}")


def check_positive(argument: str, value: object, kind: type) -> None:
    """Refuse what is not a positive number of the right kind."""
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{argument}={value!r}: a positive {kind.__name__} is needed")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{argument}={value!r}: it must be positive and finite")


def check_numbers(period: int, samples: int, damping: float, step_limit: float | None) -> None:
    """Refuse what is not a positive number; `step_limit` may be None."""
    check_positive("period", period, int)
    check_positive("samples", samples, int)
    check_positive("damping", damping, float)
    if step_limit is not None:
        check_positive("step_limit", step_limit, float)


_Group = TypeVar("_Group", Whitening, Savings, TwoSided)


def check_group(
    argument: str, value: _Group | None, kind: type[_Group], first: str
) -> _Group | None:
    """Refuse what is not such a group of options, as a name alone once was."""
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
    """What a reparametrisation is to do, with the root decided."""
    root = whitening.root
    if root == "auto":
        # D acts on single whitened units, so it matters which they are; the path of SGD does not
        # depend on them. Of the others the symmetric root generalises best.
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
    """Say of each keyword that `Reparametrizer` no longer has where it went.

    Raises:
        TypeError: if there is any.
    """
    for name, value in given.items():
        if name in _MOVED:
            raise TypeError(f"{name}={value!r}: it is {_MOVED[name]} now")
        if name in _REMOVED:
            raise TypeError(f"{name}={value!r}: it helped nobody and was removed (docs/log.md)")
        raise TypeError(f"{name}={value!r}: Reparametrizer has no such argument")
