"""The columns of a table of answers: what they are called, their types, and how they are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from pipelines.core.text import clean
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION
from pipelines.tasks.task import Task

NUMBER, PATH, REASON, LABEL, PROBABILITY = "number", "path", "reason", "label", "probability"
VERSION, SHA256 = "version", "sha256"
CLASS, VALUE, ERROR, ANSWER = "p_", "value_", "error", "answer"
_FIRST = (arrow.field(NUMBER, arrow.int64(), False), arrow.field(PATH, arrow.string(), False))
_LAST = (arrow.field(VERSION, arrow.int64(), False), arrow.field(SHA256, arrow.string(), False))
_LONGEST = 2000  # characters of a reason

Batch = tuple[list[str], list[str], NDArray[Any] | None]
"""Names of some inputs, the reason why each was not answered, and the answers to the others."""


class AnswerColumns:
    """The columns that a task's answers become.

    Args:
        task: Of the model. Where answers are images, only their errors are kept.
    """

    def __init__(self, task: Task) -> None:
        self._task, form = task, task.form
        self._kind = form.task
        if form.task == CLASSIFICATION:
            shares = [arrow.field(CLASS + _plain(name), arrow.float32()) for name in form.classes]
            likely = arrow.field(PROBABILITY, arrow.float32())
            self._fields = [arrow.field(LABEL, arrow.string()), likely, *shares]
        elif form.task == RECONSTRUCTION:
            self._fields = [arrow.field(ERROR, arrow.float64())]
        elif form.values:
            self._fields = [
                arrow.field(VALUE + _plain(value.name), arrow.float64()) for value in form.values
            ]
        else:  # a task of the user's own: its answer as a list, in the order of memory
            self._fields = [arrow.field(ANSWER, arrow.list_(arrow.float64()))]

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self._fields)

    def part_schema(self, key: str) -> Any:
        """Return the schema of a part: answers may be null, and then the reason is not."""
        fields = [*_FIRST, arrow.field(REASON, arrow.string()), *self._fields]
        return arrow.schema(fields, metadata={"prong.key": key})

    def final_schema(self, facts: dict[str, Any]) -> Any:
        """Return the schema of the file: no answer is null.

        Args:
            facts: What its metadata say: name → text, or what becomes JSON.
        """
        answers = [field.with_nullable(False) for field in self._fields]
        said = {
            f"prong.{name}": value if isinstance(value, str) else json.dumps(value)
            for name, value in facts.items()
        }
        return arrow.schema([*_FIRST, *answers, *_LAST], metadata=said)

    def kept(self, answers: NDArray[Any], inputs: NDArray[Any]) -> NDArray[Any]:
        """Return what is kept of answers, [n, …]: of a reconstruction the errors, [n]."""
        if self._kind == RECONSTRUCTION:
            none = np.zeros((len(inputs), 0))
            found: NDArray[Any] = self._task.errors(answers, none, inputs)
            return found
        return answers

    def table(self, start: int, batches: Sequence[Batch], key: str) -> Any:
        """Return inputs that follow one another, and their answers, as a table of a part.

        Args:
            start: Number of the first input.
            batches: At least one.
            key: For the metadata.
        """
        names = [name for batch in batches for name in batch[0]]
        reasons = [reason[:_LONGEST] or None for batch in batches for reason in batch[1]]
        answered = np.array([reason is None for reason in reasons], bool)
        found = [kept for _, _, kept in batches if kept is not None]
        columns = [
            arrow.array(np.arange(start, start + len(names))),
            arrow.array(names, arrow.string()),
            arrow.array(reasons, arrow.string()),
            *self._columns(np.concatenate(found) if found else None, answered),
        ]
        return arrow.Table.from_arrays(columns, schema=self.part_schema(key))

    def _columns(self, answers: NDArray[Any] | None, answered: NDArray[np.bool_]) -> list[Any]:
        if answers is None:
            return [arrow.nulls(len(answered), field.type) for field in self._fields]
        places = np.flatnonzero(answered)
        if self._kind == CLASSIFICATION:
            best = answers.argmax(axis=1)
            labels = np.full(len(answered), None, object)
            labels[places] = np.array([*map(_plain, self._task.form.classes)], object)[best]
            columns = [answers[np.arange(len(best)), best], *np.asfortranarray(answers).T]
            return [
                arrow.array(labels, arrow.string()),
                *(self._spread(column, places, len(answered), np.float32) for column in columns),
            ]
        if self._fields[0].name == ANSWER:
            lists = np.full(len(answered), None, object)
            lists[places] = [one.ravel().astype(np.float64) for one in answers]
            return [arrow.array(lists, self._fields[0].type)]
        numbers = np.asfortranarray(answers.reshape(len(answers), -1))
        return [self._spread(column, places, len(answered), np.float64) for column in numbers.T]

    @staticmethod
    def _spread(column: NDArray[Any], places: NDArray[np.intp], n: int, kind: Any) -> Any:
        """Return a column of n cells with these in their places, the others null."""
        if len(places) == n:
            return arrow.array(column.astype(kind, copy=False))
        spread, null = np.zeros(n, kind), np.ones(n, bool)
        spread[places], null[places] = column, False
        return arrow.array(spread, mask=null)


def _plain(name: str) -> str:
    """Return a name that UTF-8 can hold; names of classes may come from anywhere."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return clean(name, len(name))
    return name
