"""The result of a reparametrisation of one unit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from prong.linalg.dtypes import wide_dtype
from prong.refresh.refresh_report import LayerReport

if TYPE_CHECKING:
    from torch import Tensor

NOT_GATHERED = "no statistics were gathered"
NO_SAMPLE = "no finite sample was seen"
NO_DECOMPOSITION = "the decomposition failed"
NOT_FINITE = "the new parameters would not be finite"
DAMPING_TOO_SMALL = "the damping is too small for float32"
REASONS = ("", NO_SAMPLE, NO_DECOMPOSITION, NOT_FINITE, DAMPING_TOO_SMALL)
FALLBACKS = ("", "float64", "eigh", "kept")
_NAN = float("nan")
_WORDS = {"reason": REASONS, "fallback": FALLBACKS}


@dataclass
class Result:
    """Whether Φ is replaced, and the figures of the report.

    Figures may be scalar tensors on the layers' device, so that all can be read in one transfer.
    `LayerReport` describes the fields that have the same name there.

    Attributes:
        output_fresh: whether R was replaced too.
        columns: number of leading directions of P; −1 if P is whole or the layer has no P.
        weight_norm: ‖V‖ afterwards.
    """

    updated: bool = False
    reason: str = ""
    fallback: str = ""
    examples: Tensor | float = 0.0
    samples: Tensor | float = 0.0
    rejected: Tensor | float = 0.0
    condition_before: Tensor | float = _NAN
    condition_after: Tensor | float = _NAN
    whitening_error_before: Tensor | float = _NAN
    whitening_error: Tensor | float = _NAN
    effective_dimension: Tensor | float = _NAN
    damping: Tensor | float = _NAN
    output_condition: Tensor | float = _NAN
    output_fresh: bool = False
    columns: int = -1
    seconds: float = 0.0
    rank: int = 0
    weight_norm: Tensor | float = _NAN

    def refuse(self, reason: str, fallback: str = "") -> Result:
        """Keep the old Φ, for one of `REASONS`; return this result."""
        self.updated, self.reason, self.fallback = False, reason, fallback
        return self

    def report(self, name: str) -> LayerReport:
        """Return the report for the user."""
        return LayerReport(
            name=name,
            updated=self.updated,
            reason=self.reason,
            examples=int(self.examples),
            samples=int(self.samples),
            rejected=int(self.rejected),
            condition_before=float(self.condition_before),
            condition_after=float(self.condition_after),
            whitening_error_before=float(self.whitening_error_before),
            whitening_error=float(self.whitening_error),
            effective_dimension=float(self.effective_dimension),
            damping=float(self.damping),
            fallback=self.fallback,
            output_condition=float(self.output_condition),
            seconds=self.seconds,
            rank=self.rank,
        )


LENGTH = len(fields(Result))


class Told:
    """A result that is sent to every rank as numbers.

    Attributes:
        numbers: a number for each field of `Result`; NaN until they are known.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without a result."""
        self.numbers = torch.full((LENGTH,), _NAN, dtype=wide_dtype(device), device=device)
        self._result: Result | None = None

    def put(self, result: Result) -> None:
        """Store the fields of a result as numbers."""
        for index, field in enumerate(fields(Result)):
            value = getattr(result, field.name)
            self.numbers[index] = _WORDS[field.name].index(value) if field.name in _WORDS else value
        self._result = None

    def take(self, numbers: Tensor) -> None:
        """Copy the numbers that the owner sent."""
        self.numbers.copy_(numbers)
        self._result = None

    @property
    def weight_norm(self) -> Tensor:
        """‖V‖, a scalar in the numbers' type, with the owner's bits."""
        return self.numbers[LENGTH - 1]

    @property
    def result(self) -> Result:
        """The result as decoded from the numbers, the same on every rank."""
        if self._result is None:
            found = dict(zip((f.name for f in fields(Result)), self.numbers.tolist(), strict=True))
            words = {name: known[int(found[name])] for name, known in _WORDS.items()}
            truths = {name: found[name] == 1 for name in ("updated", "output_fresh")}
            whole = {name: int(found[name]) for name in ("columns", "rank")}
            self._result = Result(**{**found, **words, **truths, **whole})
        return self._result
