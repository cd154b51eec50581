"""The score for promotions: the errors of a released model on one split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.data.prepared import Split
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.columns import recode
from pipelines.tasks.form import RECONSTRUCTION, Form
from pipelines.tasks.named import task_of


@dataclass(frozen=True)
class Score:
    """How wrong a model is.

    Attributes:
        errors: Of each example [n]; see `pipelines.tasks.task.Task`. Two models are compared by
            them.
        finite: Whether every raw output is a finite number.
    """

    errors: NDArray[np.float64]
    finite: bool

    @property
    def images(self) -> int:
        """Number of examples scored."""
        return len(self.errors)

    @property
    def error(self) -> float:
        """The mean error, a share; NaN without examples."""
        return float(self.errors.mean()) if len(self.errors) else float("nan")


def fitted(inputs: NDArray[Any], data: Form, model: Form) -> NDArray[Any]:
    """Return inputs as a model takes them, which may have been trained on other categories.

    Args:
        inputs: As the data hold them, [n, …].
        data: Form of the data.
        model: Form of the model.

    Raises:
        UserError: If the model takes other inputs.
    """
    if model.kind != data.kind or model.bits != data.bits:
        raise UserError(f"the model takes {model.told()}, and the data are {data.told()}")
    if model.kind == "rows":
        return recode(inputs, data.columns, model.columns)
    return inputs


def error(model: OnnxModel, split: Split, data: Form, checkout: Path) -> Score:
    """Score a model on a split.

    Classes are compared by names, not positions, because a model may have been trained before a
    class was added, or with classes in another order. On a class that it does not have, it is
    wrong. Values and images are compared in their own units, by the task of the data.

    Args:
        model: The released model.
        split: The examples.
        data: Their form.
        checkout: A path in the checkout that holds the code of the user's own task, if any.

    Raises:
        UserError: If the examples do not fit the model's input, or it was made for another task.
    """
    mine = model.form
    if mine.task != data.task or [v.name for v in mine.values] != [v.name for v in data.values]:
        raise UserError(
            f"the model is one of {mine.task} ({mine.answers_told()}), and the data are for "
            f"{data.task} ({data.answers_told()})"
        )
    raw = model.raw(fitted(split.inputs, data, mine))
    task, theirs = task_of(mine, checkout), task_of(data, checkout)
    if data.classes and data.task != RECONSTRUCTION:
        places = {name: at for at, name in enumerate(mine.classes)}
        known = np.array([places.get(name, -1) for name in data.classes], dtype=np.int64)
        errors = task.score(raw, known[split.targets], split.inputs)
    else:
        # What the answers are is the model's affair, how wrong they are that of the data.
        errors = theirs.errors(task.answer(raw), split.targets, split.inputs)
    finite = bool(np.isfinite(raw).all())
    return Score(np.asarray(errors, dtype=np.float64), finite)
