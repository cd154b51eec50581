"""The report of a reparametrisation, layer by layer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """The report of one layer, or of several layers that share a weight and therefore a whitener.

    The condition number and the whitening error are those of C = U(E[(h − c)(h − c)ᵀ] + εI)Uᵀ, the
    input's factor of the layer's damped Fisher block. "Before" means with the old (c, U), "after"
    with the new. The aim is C = I. The values before show how far the activations have drifted
    since the last reparametrisation.

    Attributes:
        name: qualified name of the layer (of the first, for a shared weight).
        updated: whether Φ was replaced.
        reason: why Φ was not replaced; empty if it was.
        examples: number of examples in the statistics.
        samples: number of samples in the statistics; each pixel or token is one sample.
        rejected: number of batches that were left out because they held a NaN or an infinity.
        condition_before: condition number of C before.
        condition_after: condition number of C after.
        whitening_error_before: ‖C − I‖_F/√in before.
        whitening_error: ‖C − I‖_F/√in after.
        effective_dimension: Σ λ/(λ + ε), the expected ‖U(h − c)‖², summed over groups.
        damping: ε in the units of the covariance (the mean over groups).
        fallback: "" if the first attempt succeeded; "float64" or "eigh" if a later one did; "kept"
            if all attempts failed and the last good Φ was kept.
        output_condition: condition number of E[δδᵀ] + γI, for two-sided whitening; else NaN.
        seconds: wall-clock time that the layer's rank spent on it.
        rank: the rank of the process group that computed this layer.
    """

    name: str
    updated: bool
    reason: str = ""
    examples: int = 0
    samples: int = 0
    rejected: int = 0
    condition_before: float = float("nan")
    condition_after: float = float("nan")
    whitening_error_before: float = float("nan")
    whitening_error: float = float("nan")
    effective_dimension: float = float("nan")
    damping: float = float("nan")
    fallback: str = ""
    output_condition: float = float("nan")
    seconds: float = 0.0
    rank: int = 0


@dataclass(frozen=True)
class RefreshReport:
    """The report of one reparametrisation; the same on all ranks, except for `seconds`.

    Attributes:
        step: number of optimizer steps before it.
        seconds: wall-clock time of the reparametrisation on this rank, waiting included.
        layers: the report of each layer, by name.
        notes: notes, for example about optimizer state that had to be reset.
    """

    step: int
    seconds: float
    layers: dict[str, LayerReport]
    notes: tuple[str, ...] = field(default=())

    @property
    def fallbacks(self) -> int:
        """Number of layers where the first decomposition failed."""
        return sum(layer.fallback != "" for layer in self.layers.values())

    @property
    def kept(self) -> int:
        """Number of layers that kept their last good Φ."""
        return sum(not layer.updated for layer in self.layers.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and dicts, for JSON or experiment tracking."""
        return {
            **dataclasses.asdict(self),
            "fallbacks": self.fallbacks,
            "kept": self.kept,
        }

    def __str__(self) -> str:
        """Return a table with one line per layer."""
        width = max([len(name) for name in self.layers] + [5])
        lines = [
            f"step {self.step}: {len(self.layers) - self.kept} of {len(self.layers)} layers, "
            f"{self.seconds:.3f} s",
            f"{'layer':<{width}}  condition before → after  ‖C−I‖ before → after  samples",
        ]
        for name, layer in self.layers.items():
            lines.append(
                f"{name:<{width}}  {layer.condition_before:>16.3g} → {layer.condition_after:<5.3g}"
                f"  {layer.whitening_error_before:>12.3g} → {layer.whitening_error:<5.1g}"
                f"  {layer.samples:>7}  {layer.reason or layer.fallback}"
            )
        return "\n".join([*lines, *self.notes])
