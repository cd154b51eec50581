"""The score that decides promotions: wrong answers of a released model on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepared import Split
from pipelines.systems.onnx.runtime import OnnxModel


@dataclass(frozen=True)
class Score:
    """How often a model is wrong.

    Attributes:
        errors: Images answered wrongly.
        images: Images asked.
        error: errors / images, a share in [0, 1]; NaN without images.
        wrong: Per image [n], whether the answer is wrong: lets two models be paired.
        finite: Whether every logit is a finite number.
    """

    errors: int
    images: int
    error: float
    wrong: NDArray[np.bool_]
    finite: bool


def error(model: OnnxModel, split: Split, classes: Sequence[str]) -> Score:
    """Score a model on a split by class names.

    Names, not positions: a model trained before a class was added, or with classes in another
    order, is held to what its answers mean; on a class it does not know it is simply wrong.

    Args:
        model: The released model.
        split: Images uint8 [n, channels, size, size] and labels [n].
        classes: The split's class names; the position is the label.

    Raises:
        UserError: If the images do not fit the model's input.
    """
    logits = model.logits(split.images)
    answers = np.array(model.card.classes)[logits.argmax(axis=1)]
    wrong = answers != np.array(classes)[split.labels]
    errors, images = int(wrong.sum()), len(wrong)
    finite = bool(np.isfinite(logits).all())
    return Score(errors, images, errors / images if images else float("nan"), wrong, finite)
