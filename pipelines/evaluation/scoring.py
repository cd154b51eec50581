"""The score for promotions: the number of wrong answers of a released model on one split."""

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
        errors: Images with a wrong answer.
        images: Images scored.
        error: errors / images, a share in [0, 1]; NaN without images.
        wrong: For each image [n], whether the answer is wrong; used to compare two models.
        finite: Whether every logit is a finite number.
    """

    errors: int
    images: int
    error: float
    wrong: NDArray[np.bool_]
    finite: bool


def error(model: OnnxModel, split: Split, classes: Sequence[str]) -> Score:
    """Score a model on a split by class names.

    Names are compared, not positions, because a model may have been trained before a class was
    added, or with classes in another order. On a class that it does not have, it is wrong.

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
