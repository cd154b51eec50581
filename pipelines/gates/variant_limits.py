"""What a variant of a champion is held to, where that differs from other versions."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class VariantLimits:
    """Limits of the gates of a variant; the others are those of the parameters.

    Attributes:
        agreement: Largest share of gate examples that it answers otherwise than the champion; where
            nothing is classified, the mean difference of answers relative to their spread.
        batch: Largest difference of answers alone and in company, relative to the largest; rounding
            to 8 or 16 bits may fall either way where sums differ by rounding.
        size: Largest file, as a multiple of the champion's.
        latency: Largest time, as a multiple of the champion's.
    """

    agreement: Limit
    batch: Limit
    size: Limit
    latency: Limit
