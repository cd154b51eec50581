"""Answers to files, for people: labels, probabilities and values by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.serving.http.live import ALIAS, Loaded
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION, Form
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task

_LOG = logging.getLogger(__name__)


class Teller:
    """Writes answers by the task of the model."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._last: tuple[Form, Task | None] | None = None

    def told(
        self,
        name: str,
        loaded: Loaded,
        request: str,
        names: Sequence[str],
        inputs: NDArray[Any],
        answers: NDArray[Any],
        top: int,
    ) -> dict[str, Any]:
        """Return the body of an answer.

        Args:
            name: Of the model.
            loaded: The version that answered.
            request: Id of the request.
            names: Of the examples, [n].
            inputs: The examples, [n, *input_shape].
            answers: What users read, [n, …].
            top: Likeliest classes to name.
        """
        form = loaded.model.form
        task = self._task(form)
        errors: Sequence[float] = ()
        if form.task == RECONSTRUCTION and task is not None:
            errors = task.errors(answers, np.zeros((len(inputs), 0)), inputs).tolist()
        told = []
        for at, (example, answer) in enumerate(zip(names, answers, strict=True)):
            one: dict[str, Any] = {"name": example}
            if task is None:
                one["values"] = answer.tolist()
            elif form.task == CLASSIFICATION:
                likely = [*task.told(answer, top).items()]
                one["label"], one["probability"] = likely[0]
                one["top"] = [{"label": label, "probability": p} for label, p in likely]
            elif errors:
                one["error"] = errors[at]
            else:
                one["values"] = dict(task.told(answer, top))
            told.append(one)
        return {
            "model_name": name,
            "model_version": str(loaded.version),
            "id": request,
            "parameters": {"alias": ALIAS},
            "answers": told,
        }

    def _task(self, form: Form) -> Task | None:
        """Return the task; None if it is the user's own and its code is not here."""
        if self._last is None or self._last[0] is not form:
            try:
                self._last = form, task_of(form, self._checkout)
            except UserError as error:
                _LOG.warning("answers are told as numbers: %s", error)
                self._last = form, None
        return self._last[1]
