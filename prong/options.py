"""What may be asked of a reparametrisation, read once at the edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from prong.linalg.roots import ROOTS

WhiteningKind = Literal["full", "diagonal", "centring"]
KINDS: tuple[str, ...] = get_args(WhiteningKind)
MomentumRule = Literal["reset", "gradient", "velocity"]
MOMENTUM_RULES: tuple[str, ...] = get_args(MomentumRule)
TwoSided = Literal["empirical", "sampled"]
TWO_SIDED: tuple[str, ...] = get_args(TwoSided)
INITS = ("balanced", "whitened", "scaled", "preserve")


@dataclass(frozen=True)
class Whitening:
    """What a reparametrisation is to do; read once at the edge.

    Attributes:
        kind: "full", "diagonal" or "centring".
        root: one of `roots.ROOTS`.
        damping: ε.
        relative: whether ε is in units of the mean eigenvalue.
        decomposition_dtype: type of the first attempt at a decomposition.
        momentum: one of `momentum.MOMENTUM_RULES`.
        two_sided: one of `backward.TWO_SIDED`, or None for R = I.
        output_damping: γ, in units of the mean eigenvalue of E[δδᵀ].
        output_normalized: whether R is scaled to mean eigenvalue 1 of RᵀR.
        leading: eigenvalues of Σ below this share of ε count as 0 in preconditioned layers; None
            for a whole P.
        refit: the old U stays, and c alone is renewed, where ‖C − I‖_F/√in is at most this much
            with it; None to look for a new one every time.
    """

    kind: str
    root: str
    damping: float
    relative: bool
    decomposition_dtype: torch.dtype
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
        if self.decomposition_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"decomposition_dtype={self.decomposition_dtype}: "
                "allowed are torch.float32 and torch.float64"
            )
