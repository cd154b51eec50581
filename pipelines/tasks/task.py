"""What a task is: the one object that owns what differs between tasks.

A stage, a gate and the report ask it. It computes in numpy or in torch, whichever it is given, so
that a released model can be judged where torch is not loaded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.tasks.form import Form

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.95
_Z_TWO_SIDED, _Z_UPPER = NormalDist().inv_cdf(0.5 + LEVEL / 2), NormalDist().inv_cdf(LEVEL)
Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A figure of a model on one split.

    Attributes:
        name: Such as `accuracy`.
        value: The figure.
        low: Lower bound of its 95 % interval.
        high: Upper bound of it.
        unit: Such as `%`; empty for none.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = ""


@dataclass(frozen=True)
class Subset:
    """Some examples of a split that are looked at on their own, such as those of one class.

    Attributes:
        name: What they have in common.
        members: Whether each example is one of them, [n].
    """

    name: str
    members: NDArray[np.bool_]


class Task(ABC):
    """What differs between tasks.

    An example's *error* is a number of at least 0 whose mean over examples is the error that every
    report, gate and alert speaks of, as a share: 0 is perfect, and 1 is what a model without any
    knowledge has, or all wrong. For a classification it is 1 for a wrong answer.

    A network gives *raw* outputs. What users read are *answers*: `answer(raw)`. Both are outputs of
    the released file.

    Attributes:
        form: Inputs and answers of the model.
    """

    outputs: ClassVar[tuple[str, str]] = ("raw", "answers")
    """Names of the released file's outputs: the raw ones, and the answers."""
    counts: ClassVar[bool] = False
    """Whether an error is 0 or 1, so that the examples with errors can be counted."""
    error_means: ClassVar[str] = "unexplained variance"
    """What the error is, for people: `12.5 % unexplained variance`."""
    loss_means: ClassVar[str] = "squared error"
    """What the loss is, for people."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.check()

    def check(self) -> None:  # noqa: B027  # most tasks of one's own take any data
        """Check that the data suit the task.

        Raises:
            UserError: If they do not.
        """

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the raw output for one input."""

    @abstractmethod
    def loss(self, raw: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each example's loss [n], which training makes small on average.

        Args:
            raw: [n, *output_shape].
            targets: As the data hold them: labels int64 [n], or values float64 [n, values].
            inputs: As the data hold them, not augmented otherwise than what the network was given.
        """

    @abstractmethod
    def answer(self, raw: Any) -> Any:
        """Return what users read [n, …] for raw outputs [n, *output_shape].

        Args:
            raw: A tensor, or an array. The released file holds this function as operators.
        """

    @abstractmethod
    def errors(self, answers: Any, targets: Any, inputs: Any) -> Any:
        """Return each example's error [n], at least 0; see the class.

        Args:
            answers: Tensors, or arrays, as the other two; [n, …].
            targets: As for `loss`.
            inputs: As for `loss`.
        """

    def score(self, raw: Any, targets: Any, inputs: Any) -> Any:
        """Return each example's error from raw outputs."""
        return self.errors(self.answer(raw), targets, inputs)

    @abstractmethod
    def trivial(self, targets: Array, inputs: Array) -> NDArray[np.float64]:
        """Return the errors [n] of the best answer that does not look at the input."""

    def trivial_told(self, targets: Array) -> str:
        """Return in words what that answer is."""
        return "always the mean"

    def rise(self, new: NDArray[np.float64], old: NDArray[np.float64]) -> float:
        """Return by how much one error rate may exceed another: the one-sided upper 95 % bound.

        Here that of the mean of the paired differences, by its normal approximation.

        Args:
            new: Errors of one model [n], n ≥ 1.
            old: Errors of the other on the same examples.
        """
        difference = new - old
        n = len(difference)
        if n < 2:
            return math.inf
        spread = float(difference.std(ddof=1))
        return float(difference.mean()) + _Z_UPPER * spread / math.sqrt(n)

    def sound(self, answers: Array) -> bool:
        """Say whether answers [n, …] can be any: finite, say, or shares that sum to 1."""
        return bool(np.isfinite(answers).all())

    def metrics(self, raw: Array, targets: Array, inputs: Array) -> list[Metric]:
        """Return figures with intervals; the first is the error.

        Args:
            raw: [n, *output_shape], n ≥ 1.
            targets: As for `loss`.
            inputs: As for `loss`.
        """
        return [mean_metric("error", 100 * self.score(raw, targets, inputs), "%")]

    def parts(self, targets: Array, inputs: Array) -> list[Subset]:
        """Return the parts of a split that are reported and held to the gate `classes`."""
        found = []
        if self.form.classes:
            found += [Subset(c, targets == at) for at, c in enumerate(self.form.classes)]
        for at in self.form.categories:
            column = self.form.columns[at]
            for place, name in enumerate(column.categories[:_MOST_PARTS]):
                found.append(Subset(f"{column.name} = {name}", inputs[:, at] == place + 2))
        for at in self.form.numbers:
            found += quarters(self.form.columns[at].name, inputs[:, at])
        return found

    def compared(self, answer: Array, target: Array) -> dict[str, Any]:
        """Return what the report shows of one answer beside its target, as plain JSON values.

        Args:
            answer: Of one example, without the batch's axis.
            target: Of that example.
        """
        return {
            value.name: {"actual": float(target[at]), "predicted": float(answer[at])}
            for at, value in enumerate(self.form.values)
        }

    def table(self, answers: Array, targets: Array) -> list[tuple[Any, ...]]:
        """Return the rows of `predictions.csv`, the header first; only the header if none are."""
        names = [value.name for value in self.form.values]
        header = tuple(f"{what} {name}" for name in names for what in ("actual", "predicted"))
        rows = [header or ("example",)]
        for target, answer in zip(targets, answers, strict=True):
            if names:
                pairs = zip(target.tolist(), answer.tolist(), strict=True)
                rows.append(tuple(number for pair in pairs for number in pair))
        return rows

    def told(self, answer: Array, top: int = 3) -> Mapping[str, Any]:
        """Return what `predict` prints of one answer: name → text or number.

        Args:
            answer: Of one input, without the batch's axis.
            top: Likeliest classes to name.
        """
        return {name.name: float(answer[at]) for at, name in enumerate(self.form.values)}


_MOST_PARTS = 20  # categories of a column that are looked at one by one


def quarters(name: str, values: NDArray[np.float64]) -> list[Subset]:
    """Return four parts with about equally many examples each, by a number; and the missing ones.

    Args:
        name: Of the number.
        values: [n]; NaN where it is missing.
    """
    there = np.isfinite(values)
    found = []
    if there.any():
        edges = np.unique(np.quantile(values[there], (0, 0.25, 0.5, 0.75, 1)))
        for low, high in pairwise(edges.tolist()):
            last = high == float(edges[-1])
            inside = there & (values >= low) & ((values <= high) if last else (values < high))
            found.append(Subset(f"{name} {low:.4g} to {high:.4g}", inside))
    if not there.all():
        found.append(Subset(f"{name} missing", ~there))
    return found


def mean_metric(name: str, values: NDArray[np.float64], unit: str = "") -> Metric:
    """Return the mean of values [n] with its interval, by its normal approximation."""
    n, mean = len(values), float(values.mean())
    half = _Z_TWO_SIDED * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Metric(name, mean, mean - half, mean + half, unit)


def resampled_metric(
    name: str, of: Any, columns: Sequence[NDArray[np.float64]], unit: str = ""
) -> Metric:
    """Return a figure of several means with its percentile bootstrap interval.

    Args:
        name: Of the figure.
        of: Function of the means of the columns, each [draws], that returns the figure [draws].
        columns: Numbers of each example, [n] each.
        unit: Of the figure.
    """
    table = np.stack(columns)
    n = table.shape[1]
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n
    value = float(of(*table.mean(axis=1)[:, None])[0])
    low, high = np.quantile(of(*(table @ draws.T)), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Metric(name, value, float(low), float(high), unit)


_DRAWS = 400


def must(holds: bool, task: str, why: str) -> None:
    """Raise a `UserError` about `task.name` unless something holds."""
    if not holds:
        raise UserError(f"task.name = {task!r}: {why}")
