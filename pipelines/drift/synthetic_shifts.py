"""Changes of held-out examples, among which a score is chosen; the same ones each time.

They are made here and of any data. What a score is later reported against are other data sets and
other strengths, which no choice has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.tasks.columns import FIRST, OTHER
from pipelines.tasks.form import Form

Array = NDArray[Any]
Change = Callable[[Array, Form, np.random.Generator], Array]
_PARTS = 4
"""Pieces of an edge that are shuffled."""


def shifted(inputs: Array, form: Form) -> Iterator[tuple[str, Array]]:
    """Yield name and changed examples, [n, *input_shape], of each shift that suits the data."""
    changes = _IMAGES if form.kind == "images" else _ROWS
    for at, (name, change) in enumerate(changes.items()):
        found = change(inputs, form, np.random.default_rng(at))
        if not np.array_equal(found, inputs, equal_nan=form.kind == "rows"):
            yield name, found


def _pixels(values: Array, form: Form) -> Array:
    found: Array = np.rint(values).clip(0, form.levels).astype(form.dtype)
    return found


def _noise(share: float) -> Change:
    def change(inputs: Array, form: Form, random: np.random.Generator) -> Array:
        return _pixels(inputs + random.normal(0, share * form.levels, inputs.shape), form)

    return change


def _blur(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    width = max(form.size / 28, 0.5)
    return _pixels(ndimage.gaussian_filter(inputs.astype(float), (0, 0, width, width)), form)


def _turned(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    """Turn by 30°, to the left or right; what comes in from outside repeats the border."""
    half = len(inputs) // 2
    parts = [
        ndimage.rotate(part.astype(float), angle, (3, 2), reshape=False, order=1, mode="nearest")
        for part, angle in ((inputs[:half], 30), (inputs[half:], -30))
    ]
    return _pixels(np.concatenate(parts), form)


def _thicker(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    found: Array = ndimage.grey_dilation(inputs, (1, 1, 3, 3))
    return found


def _thinner(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    found: Array = ndimage.grey_erosion(inputs, (1, 1, 2, 2))
    return found


def _inverted(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    found: Array = (form.levels - inputs.astype(np.int64)).astype(form.dtype)
    return found


def _random(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    return random.integers(0, form.levels + 1, inputs.shape, dtype=form.dtype)


def _pieces(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    """Shuffle the pieces of each image."""
    edge = form.size // _PARTS
    found = inputs.copy()
    if not edge:
        return found
    places = [(y * edge, x * edge) for y in range(_PARTS) for x in range(_PARTS)]
    for image, old in zip(found, inputs, strict=True):
        for (y, x), place in zip(places, random.permutation(len(places)), strict=True):
            v, u = places[place]
            image[:, y : y + edge, x : x + edge] = old[:, v : v + edge, u : u + edge]
    return found


def _moved(by: float, noise: float) -> Change:
    """Move numbers by so many deviations, and add noise of so many."""

    def change(inputs: Array, form: Form, random: np.random.Generator) -> Array:
        found = inputs.copy()
        for at in form.numbers:
            scale = form.columns[at].deviation
            found[:, at] += scale * (by + noise * random.normal(size=len(found)))
        return found

    return change


def _independent(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    """Shuffle each column by itself: what columns have to do with each other is lost."""
    return np.stack([random.permutation(column) for column in inputs.T], axis=1)


def _categories(inputs: Array, form: Form, random: np.random.Generator) -> Array:
    """Draw categories at random, also texts that are none of them."""
    found = inputs.copy()
    for at in form.categories:
        most = int(FIRST) + len(form.columns[at].categories)
        found[:, at] = random.integers(int(OTHER), most, len(found))
    return found


_IMAGES: dict[str, Change] = {
    "noise 10 %": _noise(0.1),
    "noise 25 %": _noise(0.25),
    "blur": _blur,
    "rotation 30°": _turned,
    "thicker": _thicker,
    "thinner": _thinner,
    "inverted": _inverted,
    "shuffled pieces": _pieces,
    "random pixels": _random,
}
_ROWS: dict[str, Change] = {
    "noise": _moved(0, 1),
    "moved": _moved(1, 0),
    "moved far": _moved(4, 0),
    "independent columns": _independent,
    "random categories": _categories,
}
