"""The score that decides promotions: wrong answers of a released model on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.data.prepared import Split, load_card, load_split
from pipelines.errors import Unavailable, UserError
from pipelines.layout import Layout
from pipelines.runtime import OnnxModel

if TYPE_CHECKING:
    from pipelines.registry import Version


@dataclass(frozen=True)
class Score:
    """How often a model is wrong.

    Attributes:
        errors: Images answered wrongly.
        images: Images asked.
        error: errors / images, a share in [0, 1]; NaN without images.
        wrong: Per image [n], whether the answer is wrong: lets two models be paired.
    """

    errors: int
    images: int
    error: float
    wrong: NDArray[np.bool_]


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
    answers = np.array(model.card.classes)[model.logits(split.images).argmax(axis=1)]
    wrong = answers != np.array(classes)[split.labels]
    errors, images = int(wrong.sum()), len(wrong)
    return Score(errors, images, errors / images if images else float("nan"), wrong)


def gate_score(layout: Layout, version: Version) -> Score | str:
    """Return a version's score on the checkout's gate split, or why it cannot be scored.

    Raises:
        UserError: If the checkout has no gate split.
        Unavailable: If the registry does not answer.
    """
    from pipelines import registry

    card, split = load_card(layout.prepared), load_split(layout.prepared, "gate")
    try:
        model = OnnxModel.load(registry.version_file(layout, version), "cpu")
        return error(model, split, card.classes)
    except Unavailable:
        raise
    except UserError as found:
        return str(found)
