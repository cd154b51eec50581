"""What a searched setting may be: a range of numbers, or a few values."""

from __future__ import annotations

from dataclasses import dataclass

Value = str | bool | int | float


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
        low: The least.
        high: The largest, above `low`.
        log: Whether equal ratios are equally likely, rather than equal differences.
        whole: Whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def holds(self, value: Value) -> bool:
        """Say whether a value lies in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def nearest(self, value: float) -> int | float:
        """Return a proposal as it is used and shown: whole, or with four digits."""
        if self.whole:
            return round(value)
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def __str__(self) -> str:
        """Return the range as it is given on the command line."""
        return f"{self.low:g}..{self.high:g}"


@dataclass(frozen=True)
class Choice:
    """One of a few values, without an order.

    Attributes:
        values: At least two, all different.
    """

    values: tuple[Value, ...]

    def holds(self, value: Value) -> bool:
        """Say whether a value is one of them."""
        return any(value == one and type(value) is type(one) for one in self.values)

    def __str__(self) -> str:
        """Return the values as they are given on the command line."""
        return ",".join(written(value) for value in self.values)


Dimension = Range | Choice


def written(value: Value) -> str:
    """Return a value as `params.yaml` and the command line have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
