"""Examples of random values, where any will do."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tasks.columns import OTHER
from pipelines.tasks.form import Form


def examples(form: Form, count: int) -> NDArray[Any]:
    """Return examples of random values, the same ones each time, as the data hold them."""
    random = np.random.default_rng(0)
    if form.kind == "images":
        shape = (count, *form.input_shape)
        return random.integers(0, form.levels + 1, shape, dtype=form.dtype)
    columns = []
    for column in form.columns:
        if column.kind == "number":
            columns.append(random.normal(column.mean, column.deviation, count))
        else:
            most = int(OTHER) + len(column.categories)
            columns.append(random.integers(0, most + 1, count).astype(float))
    return np.stack(columns, axis=1)
