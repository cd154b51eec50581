"""What a function of `data.source` yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from PIL import Image

Target = str | int | float | Sequence[float] | None
"""A class, a number, several numbers, or nothing; see `Example`."""


class Example(NamedTuple):
    """One example. A plain pair (input, target) stands for one without split and name.

    Attributes:
        input: An image: uint8 or uint16 [height, width] or [height, width, channels], or a picture
            of Pillow. All examples have as many channels, and as many bits as `data.bits`.
        target: A class (text or whole number); a number, or several in a list, tuple, array or
            named tuple, to be predicted (`task.name: regression`); None to reconstruct the input.
        split: The split that it belongs to; None: its content decides.
        name: What messages call it; empty: its number.
    """

    input: NDArray[Any] | Image.Image
    target: Target = None
    split: Literal["train", "validation", "test"] | None = None
    name: str = ""
