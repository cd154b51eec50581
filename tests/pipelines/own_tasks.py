"""The task that docs/tasks.md shows, and faulty ones made of it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from pipelines.core import own_code
from pipelines.core.files import write_text
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form, Value
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task
from pipelines.training.network import NetworkSpec

DOCS = Path(__file__).parents[2] / "docs/tasks.md"
COLUMNS = (
    Column("age", "number", 40.0, 10.0),
    Column("colour", "category", gaps=True, categories=("blue", "red")),
)
VALUE = Value("price", 100.0, 20.0)
_NUMBERS = itertools.count()


def example() -> str:
    """Return the task of the documentation, as it stands there."""
    found = re.search(r"```python\n# tasks\.py\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


def write(root: Path, text: str) -> str:
    """Write a task's file in a folder that stands for a checkout, and return what names it.

    No two have the same name, because modules stay loaded.
    """
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).touch()
    module = f"own_task_{next(_NUMBERS)}"
    write_text(root / f"{module}.py", text)
    return f"{module}:Quantiles"


def form(task: str, values: tuple[Value, ...] = (VALUE,)) -> Form:
    """Return a table of two columns with one value to predict."""
    return Form(task=task, values=values, columns=COLUMNS)


def made(root: Path, text: str | None = None) -> Task:
    """Return a task from its text: the example's, unless another is given."""
    return task_of(form(write(root, example() if text is None else text)), root)


def spec(root: Path, task: Task) -> NetworkSpec:
    """Return a small network for a task."""
    code = own_code.own_hash(task.form.task, root, "task.name")
    return NetworkSpec(
        form=task.form,
        output_shape=task.output_shape,
        method="sgd",
        width=4,
        hidden=4,
        network="mlp",
        task_code=code,
    )


ROWS = np.array([[30.0, 2.0], [40.0, 3.0], [50.0, 0.0], [np.nan, 1.0]])
"""Rows of that table: one of each colour, a missing and an unknown one."""
