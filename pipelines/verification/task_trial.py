"""Before a training: a task of the user's own is asked for everything that is asked for later.

Evaluation, gates and `predict` call its functions when the training is done. A mistake in one of
them would be found then, or, worse, not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.core import own_code
from pipelines.core.errors import UserError
from pipelines.tasks.named import BUILT_IN, KEY
from pipelines.tasks.task import Metric, Subset, Task

Array = NDArray[Any]
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # what float32 may differ by


class TaskTrial:
    """A task on trial, with some examples and what an untrained network answered to them."""

    def __init__(self, task: Task, given: Array, root: Path) -> None:
        """Prepare targets that differ from each other.

        Args:
            task: Any; one that is built in is only asked for losses and errors.
            given: Examples as the data hold them, [n, …], n ≥ 2.
            root: The checkout, for messages about the user's own code.
        """
        self._task, self._given, self._root = task, given, root
        self._targets = _targets(task, len(given))

    def refused(self, why: str) -> UserError:
        """Return an error about the task."""
        return UserError(f"{KEY} = {self._task.form.task!r}: {why}")

    def loss(self, raw: Tensor) -> Tensor:
        """Return each example's loss [n], after all functions of the task were tried.

        Args:
            raw: The network's output, with its graph.

        Raises:
            UserError: If a function raises, or returns what it must not.
        """
        inputs, targets = torch.from_numpy(self._given), torch.from_numpy(self._targets)
        loss: Tensor = self._call(self._task.loss, raw, targets, inputs)
        self._one_each("loss", loss)
        if not (isinstance(loss, Tensor) and loss.is_floating_point() and loss.isfinite().all()):
            raise self.refused("loss must return a tensor of finite floating-point numbers")
        plain = raw.detach()
        here = plain.numpy()
        answers, again = self._call(self._task.answer, plain), self._call(self._task.answer, here)
        self._answers(plain, answers, again)
        errors = self._errors(self._task.errors, answers, targets, inputs)
        score = self._errors(self._task.score, plain, targets, inputs)
        arrays = self._errors(self._task.errors, again, self._targets, self._given)
        self._same("errors of tensors and of arrays differ", errors, arrays)
        self._same("score and errors of the answers differ", score, errors)
        if self._task.form.task not in BUILT_IN:
            self._reports(here, again)
        return loss

    def exported(self, raw: Array, answers: Array) -> None:
        """Check the answers of the ONNX file of an untrained network.

        Args:
            raw: Raw outputs of the file, [n, …].
            answers: Answers of it, [n, …].

        Raises:
            UserError: If `answer` makes others of these raw outputs.
        """
        found = self._call(self._task.answer, raw)
        self._same("the answers in the ONNX file are not those of answer(raw)", answers, found)

    def _call(self, function: Callable[..., Any], *given: Any) -> Any:
        try:
            with np.errstate(all="ignore"):
                return function(*given)
        except UserError:
            raise
        except Exception as error:
            name = getattr(function, "__name__", "")
            raise self.refused(f"{name}: {own_code.where(error, self._root)}") from None

    def _one_each(self, name: str, found: Any) -> None:
        count = len(self._given)
        shape = list(found.shape) if isinstance(found, Tensor | np.ndarray) else None
        if shape != [count]:
            what = type(found).__name__ if shape is None else f"shape {shape}"
            raise self.refused(
                f"{name} returned {what} for {count} examples; needed: one number for each, "
                f"[{count}]"
            )

    def _errors(self, function: Callable[..., Any], *given: Any) -> Array:
        name, found = function.__name__, self._call(function, *given)
        self._one_each(name, found)
        values = found.double().numpy() if isinstance(found, Tensor) else found.astype(np.float64)
        if not np.isfinite(values).all():
            raise self.refused(f"{name} returned a number that is not finite")
        if (values < 0).any():
            raise self.refused(f"{name} returned {values.min():g}; errors are at least 0")
        return np.asarray(values)

    def _answers(self, raw: Tensor, answers: Any, again: Any) -> None:
        if not (isinstance(answers, Tensor) and isinstance(again, np.ndarray)):
            kinds = f"{type(answers).__name__} and {type(again).__name__}"
            raise self.refused(
                f"answer must return a tensor for a tensor and an array for an array, not {kinds}"
            )
        if not answers.shape or len(answers) != len(raw):
            raise self.refused(
                f"answer returned shape {list(answers.shape)} for {len(raw)} examples; needed: "
                f"[{len(raw)}, …]"
            )
        self._same("answer of tensors and of arrays differ", answers.double().numpy(), again)
        # Of an untrained network they may be almost equal; these are not.
        drawn = torch.randn(raw.shape, generator=torch.Generator().manual_seed(0))
        together = self._call(self._task.answer, drawn)
        alone = torch.cat([self._call(self._task.answer, one[None]) for one in drawn])
        self._same(
            "the answer to one example depends on the others of its batch; nothing may be computed "
            "over the first dimension",
            together.double().numpy(),
            alone.double().numpy(),
        )
        if not self._call(self._task.sound, again):
            raise self.refused("sound says that answers of an untrained network cannot be any")

    def _same(self, why: str, one: Array, other: Array) -> None:
        first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if first.shape != second.shape:
            raise self.refused(f"{why}: shapes {list(first.shape)} and {list(second.shape)}")
        scale = max(1.0, float(np.abs(first).max(initial=0.0)))
        apart = np.abs(first - second).max(initial=0.0)
        if not apart <= _RELATIVE * scale + _ABSOLUTE:
            raise self.refused(f"{why}, by up to {apart:.3g}")

    def _reports(self, raw: Array, answers: Array) -> None:
        """Ask for what evaluation, report, gates and `predict` will ask for."""
        task, given = self._task, (self._targets, self._given)
        trivial = self._errors(task.trivial, *given)
        self._is("trivial_told", self._call(task.trivial_told, self._targets), str, "a text")
        rise = self._call(task.rise, trivial, trivial)
        self._is("rise", rise, float | int, "a number")
        metrics = self._list("metrics", self._call(task.metrics, raw, *given), Metric)
        if not metrics:
            raise self.refused("metrics returned nothing; the first figure is the error")
        for one in metrics:
            for number in (one.value, one.low, one.high):
                self._is(f"metrics: {one.name}", number, float | int, "plain numbers")
        for part in self._list("parts", self._call(task.parts, *given), Subset):
            self._one_each(f"parts: {part.name}", part.members)
            if part.members.dtype != np.bool_:
                raise self.refused(f"parts: {part.name} has members that are not true or false")
        rows = self._list("table", self._call(task.table, answers, self._targets), tuple)
        if len({len(row) for row in rows}) != 1:
            raise self.refused("table must return a header first, and rows as long as it")
        for name, plain in (
            ("compared", self._call(task.compared, answers[0], self._targets[0])),
            ("told", self._call(task.told, answers[0])),
        ):
            self._is(name, plain, Mapping, "a mapping")
            try:
                json.dumps(dict(plain))
            except (TypeError, ValueError) as error:
                raise self.refused(f"{name}: not plain JSON values: {error}") from None

    def _is(self, name: str, found: Any, kind: Any, wanted: str) -> None:
        if not isinstance(found, kind):
            raise self.refused(f"{name}: {type(found).__name__}; needed: {wanted}")

    def _list(self, name: str, found: Any, kind: type) -> list[Any]:
        if not (isinstance(found, list) and all(isinstance(one, kind) for one in found)):
            raise self.refused(f"{name} must return a list of {kind.__name__}")
        return found


def _targets(task: Task, count: int) -> Array:
    """Return targets as the data hold them; values lie within a deviation of their mean."""
    form = task.form
    if form.classes:
        return np.arange(count) % len(form.classes)
    mean = np.array([value.mean for value in form.values])
    deviation = np.array([value.deviation for value in form.values])
    found: Array = mean + np.linspace(-1, 1, count)[:, None] * deviation
    return found
