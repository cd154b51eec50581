"""The kinds of variants, and what each is held to."""

from __future__ import annotations

from pipelines.core.config import GatesConfig
from pipelines.gates.variant_limits import VariantLimits

FP16, INT8, TRUNCATED = "fp16", "int8", "truncated"
KINDS = (FP16, INT8, TRUNCATED)
"""16-bit floats · 8-bit integers · layers of lower rank."""
SMALLER = 0.95
"""Largest file of a variant, as a share of the champion's: else there is no point in it."""
_ROUNDING = {FP16: 5e-3, INT8: 2e-2}
"""Differences in company: sums that differ by rounding may fall to the next of 2¹¹ or 2⁸ steps."""


def limits_of(kind: str, gates: GatesConfig) -> VariantLimits:
    """Return what a kind of variant is held to.

    Args:
        kind: Of `KINDS`.
        gates: The limits of all versions.
    """
    # A truncation that is not faster has no use; fewer bits may be of use on another processor.
    latency = min(gates.latency, 1.0) if kind == TRUNCATED else gates.latency
    return VariantLimits(
        agreement=gates.margin,
        batch=max(_ROUNDING.get(kind, 0.0), gates.parity),
        size=SMALLER,
        latency=latency,
    )
