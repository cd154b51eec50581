"""What goes into a network, and what its answers mean: one description for all stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from pipelines.tasks.columns import Column

CLASSIFICATION, RECONSTRUCTION, REGRESSION = "classification", "reconstruction", "regression"
TASKS = (CLASSIFICATION, RECONSTRUCTION, REGRESSION)
"""The tasks that are built in."""
MOST_CHANNELS = 64
LARGEST_SIZE = 4096


@dataclass(frozen=True)
class Value:
    """A number that is to be predicted.

    Attributes:
        name: The column.
        mean: Over the train split.
        deviation: Standard deviation over the train split, above 0.
    """

    name: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class Form:
    """Inputs and answers.

    An input is an image (`size` and `channels` are set) or a row of a table (`columns` is).

    Attributes:
        task: One of `TASKS`, or `module:Class`.
        classes: Class names; the position is the label. Empty where nothing is classified.
        values: The numbers that are predicted. Empty where none are.
        size: Edge of square images, pixels; 0: rows.
        channels: Of images; 0: rows.
        mean: Per channel, of pixel values in [0, 1].
        deviation: Per channel, of pixel values in [0, 1].
        bits: 8 or 16, of each pixel value.
        columns: Of rows.
    """

    task: str
    classes: tuple[str, ...] = ()
    values: tuple[Value, ...] = ()
    size: int = 0
    channels: int = 0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    bits: int = 8
    columns: tuple[Column, ...] = ()

    @property
    def kind(self) -> Literal["images", "rows"]:
        """What an input is."""
        return "rows" if self.columns else "images"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input as it is stored: (channels, size, size) or (columns,)."""
        if self.columns:
            return (len(self.columns),)
        return (self.channels, self.size, self.size)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of inputs as they are stored: uint8 or uint16 images, float64 rows."""
        stored: DTypeLike = np.uint8 if self.bits == 8 else np.uint16
        return np.dtype(np.float64 if self.columns else stored)

    @property
    def levels(self) -> int:
        """The largest pixel value: 255 or 65,535."""
        return int(2**self.bits - 1)

    @property
    def target_dtype(self) -> np.dtype[np.generic]:
        """Of targets as they are stored: int64 labels [n], or float64 values [n, values]."""
        return np.dtype(np.int64 if self.classes else np.float64)

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one target as it is stored."""
        return () if self.classes else (len(self.values),)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The positions of the columns that hold numbers."""
        return tuple(at for at, column in enumerate(self.columns) if column.kind == "number")

    @property
    def categories(self) -> tuple[int, ...]:
        """The positions of the columns that hold categories."""
        return tuple(at for at, column in enumerate(self.columns) if column.kind == "category")

    def problems(self) -> list[str]:
        """Return what is wrong with the description; empty if nothing is."""
        checks = {
            "classes: a name occurs twice": len(set(self.classes)) == len(self.classes),
            "classes and values: only one of them may be there": not (self.classes and self.values),
            "values: finite means and deviations above 0 are needed": all(
                math.isfinite(v.mean) and math.isfinite(v.deviation) and v.deviation > 0
                for v in self.values
            ),
            "classes: at least one is needed": bool(self.classes) or self.task != CLASSIFICATION,
            "values: at least one is needed": bool(self.values) or self.task != REGRESSION,
        }
        if self.columns:
            checks["columns: a name occurs twice"] = _different([c.name for c in self.columns])
            checks["size, channels, mean and deviation: rows have none"] = not (
                self.size or self.channels or self.mean or self.deviation
            )
        else:
            checks |= self._checks_of_images()
        found = [message for message, good in checks.items() if not good]
        return found + [said for column in self.columns if (said := column.problem())]

    def _checks_of_images(self) -> dict[str, bool]:
        return {
            f"size = {self.size}: must be 1 to {LARGEST_SIZE}": 1 <= self.size <= LARGEST_SIZE,
            f"channels = {self.channels}: must be 1 to {MOST_CHANNELS}": (
                1 <= self.channels <= MOST_CHANNELS
            ),
            f"bits = {self.bits}: must be 8 or 16": self.bits in (8, 16),
            "mean and deviation: one finite number per channel is needed": (
                len(self.mean) == len(self.deviation) == self.channels
                and all(abs(value) < 1e6 for value in (*self.mean, *self.deviation))
            ),
            "deviation: deviations above 0 are needed": all(value > 0 for value in self.deviation),
        }

    def told(self) -> str:
        """Return inputs and answers in a few words: `uint8 [n, 1, 28, 28] → 10 classes`."""
        shape = ", ".join(map(str, ("n", *self.input_shape)))
        return f"{self.dtype} [{shape}] → {self.answers_told()}"

    def answers_told(self) -> str:
        """Return what the answers are: `10 classes`, `1 value`, `the same again`."""
        if self.task == RECONSTRUCTION:
            return "the same again"
        if self.classes:
            return f"{len(self.classes)} classes"
        return f"{len(self.values)} value{'s' * (len(self.values) != 1)}"


def _different(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)
