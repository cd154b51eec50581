"""What a released file is given: its inputs by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.systems.onnx.metadata import CATEGORIES, IMAGES, NUMBERS
from pipelines.tasks import columns
from pipelines.tasks.form import Form


def fed(form: Form, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return what a released file is given: its inputs by name.

    Args:
        form: Of the model.
        inputs: As the data hold them, [n, *input_shape].

    Raises:
        UserError: If a code of a row is none of the column's.
    """
    if form.kind == "images":
        return {IMAGES: inputs}
    given: dict[str, NDArray[Any]] = {}
    if form.numbers:
        given[NUMBERS] = np.ascontiguousarray(inputs[:, form.numbers])
    if form.categories:
        try:
            cells = [
                columns.texts(inputs[:, at], form.columns[at].categories) for at in form.categories
            ]
        except ValueError as error:
            raise UserError(f"a row does not fit the model's columns: {error}") from None
        given[CATEGORIES] = np.stack(cells, axis=1)
    return given
