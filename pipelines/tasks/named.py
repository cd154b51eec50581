"""From the name of a task to the object: one that is built in, or a class of the user's own."""

from __future__ import annotations

from pathlib import Path

from pipelines.core import own_code
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.tasks.classification import Classification
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION, REGRESSION, Form
from pipelines.tasks.reconstruction import Reconstruction
from pipelines.tasks.regression import Regression
from pipelines.tasks.task import Task, must

KEY = "task.name"
BUILT_IN: dict[str, type[Task]] = {
    CLASSIFICATION: Classification,
    RECONSTRUCTION: Reconstruction,
    REGRESSION: Regression,
}


def task_of(form: Form, checkout: Path) -> Task:
    """Return the task of some data or of a model.

    Args:
        form: Names the task.
        checkout: A path in the checkout that holds the user's own code; looked at only for such.

    Raises:
        UserError: If there is no such task, the data do not suit it, or own code cannot be used.
    """
    if form.task in BUILT_IN:
        return BUILT_IN[form.task](form)
    if not own_code.is_own(form.task):
        allowed = ", ".join((*BUILT_IN, "module:Class"))
        raise UserError(f"{KEY} = {form.task!r}: no such task; allowed: {allowed}")
    root = Layout.find(checkout).root
    kind = own_code.load(form.task, root, KEY)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError(
            f"{KEY} = {form.task!r}: not a class made from pipelines.tasks.task.Task "
            "(docs/tasks.md)"
        )
    try:
        task: Task = kind(form)
        shape = task.output_shape
    except UserError:
        raise
    except Exception as error:  # among them a TypeError, where a method is missing
        raise UserError(f"{KEY} = {form.task!r}: {own_code.where(error, root)}") from None
    sizes = isinstance(shape, tuple) and all(type(n) is int and n > 0 for n in shape)
    must(sizes and shape != (), form.task, f"output_shape is {shape!r}; needed: such as (3,)")
    named = task.outputs
    two = isinstance(named, tuple) and len(set(named)) == len(named) == 2
    two = two and all(isinstance(name, str) and name.isidentifier() for name in named)
    two = two and not {"images", "numbers", "categories"}.intersection(named)
    must(two, form.task, f"outputs is {named!r}; needed: two names, such as ('raw', 'answers')")
    return task


def task_code(name: str, checkout: Path) -> str:
    """Return the hash of a task's own code; empty for a task that is built in.

    Raises:
        UserError: If the file is absent or cannot be read.
    """
    if not own_code.is_own(name):
        return ""
    return own_code.own_hash(name, Layout.find(checkout).root, KEY)
