"""Answers for image files, decoded exactly as the training images were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.data.images import decode
from pipelines.systems.onnx.runtime import OnnxModel

_BATCH = 256


@dataclass(frozen=True)
class Prediction:
    """The model's answer for one image.

    Attributes:
        path: The image.
        label: The likeliest class.
        probability: Its probability.
        top: The likeliest classes with their probabilities, likeliest first.
    """

    path: Path
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


def predict(model: OnnxModel, images: Sequence[Path], *, top: int = 3) -> list[Prediction]:
    """Ask a model about image files.

    Args:
        model: The released model; its card gives the input's size and channels.
        images: Paths, in the order of the answers.
        top: Classes to name for each image, at most those there are.

    Raises:
        UserError: Naming the first file that is not a readable image.
    """
    card = model.card
    found = []
    for start in range(0, len(images), _BATCH):
        paths = images[start : start + _BATCH]
        decoded = [decode(path, size=card.size, channels=card.channels) for path in paths]
        for path, row in zip(paths, model.probabilities(np.stack(decoded)), strict=True):
            order = np.argsort(-row, kind="stable")[: max(top, 1)]
            likely = tuple((card.classes[at], float(row[at])) for at in order)
            found.append(Prediction(path, likely[0][0], likely[0][1], likely))
    return found
