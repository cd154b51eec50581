"""Which class an input belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tasks.interval import upper_bound
from pipelines.tasks.task import LEVEL, Array, Metric, Task, mean_metric, must

if TYPE_CHECKING:
    from torch import Tensor

_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


class Classification(Task):
    """One class for each input; raw outputs are logits, answers are probabilities."""

    outputs = ("logits", "probabilities")
    counts = True
    error_means = "wrong answers"
    loss_means = "cross-entropy in nats"

    def check(self) -> None:
        """Check that there are classes."""
        must(bool(self.form.classes), self.form.task, "the data have no classes")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One logit for each class."""
        return (len(self.form.classes),)

    def loss(self, raw: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return the cross-entropy, nats."""
        from torch.nn import functional

        return functional.cross_entropy(raw, targets, reduction="none")

    def answer(self, raw: Any) -> Any:
        """Return the softmax: of a tensor in its own type, of an array in float64."""
        if not isinstance(raw, np.ndarray):
            return raw.softmax(1)
        logits = raw.astype(np.float64)
        with np.errstate(invalid="ignore"):  # of an infinite logit comes NaN, which no gate passes
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)

    def errors(self, answers: Any, targets: Any, inputs: Any) -> Any:
        """Return 1.0 where another class has the largest probability, else 0.0."""
        return (answers.argmax(1) != targets) * 1.0

    def score(self, raw: Any, targets: Any, inputs: Any) -> Any:
        """Return the errors by the logits, whose order is that of the probabilities."""
        return self.errors(raw, targets, inputs)

    def trivial(self, targets: Array, inputs: Array) -> NDArray[np.float64]:
        """Return the errors of always answering the most frequent class."""
        found: NDArray[np.float64] = (targets != np.bincount(targets).argmax()) * 1.0
        return found

    def trivial_told(self, targets: Array) -> str:
        """Return the most frequent class."""
        return f"always {self.form.classes[int(np.bincount(targets).argmax())]!r}"

    def rise(self, new: NDArray[np.float64], old: NDArray[np.float64]) -> float:
        """Return Tango's score bound; see `pipelines.tasks.interval`."""
        lost, won = int((new > old).sum()), int((new < old).sum())
        return upper_bound(lost, won, len(new))

    def sound(self, answers: Array) -> bool:
        """Say whether these are probabilities."""
        finite = bool(np.isfinite(answers).all())
        return finite and bool((answers >= 0).all() and (abs(answers.sum(1) - 1) < 1e-3).all())

    def metrics(self, raw: Array, targets: Array, inputs: Array) -> list[Metric]:
        """Return error, cross-entropy, and the mean error over classes."""
        errors = self.score(raw, targets, inputs)
        n, share = len(errors), float(errors.mean())
        # Wilson's interval, which is sound at no errors as well.
        middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n)) / (1 + _Z**2 / n)
        likely = self.answer(raw)[np.arange(n), targets]
        return [
            Metric("error", 100 * share, 100 * (middle - half), 100 * (middle + half), "%"),
            mean_metric("cross-entropy", -np.log(np.maximum(likely, 1e-300)), "nats"),
        ]

    def compared(self, answer: Array, target: Array) -> dict[str, Any]:
        """Return actual and predicted class, and the probability of the actual one."""
        return {
            "actual": self.form.classes[int(target)],
            "predicted": self.form.classes[int(answer.argmax())],
            "probability": round(float(answer[int(target)]), 6),
        }

    def table(self, answers: Array, targets: Array) -> list[tuple[Any, ...]]:
        """Return actual and predicted class of each example, the header first."""
        names, predicted = self.form.classes, answers.argmax(axis=1)
        pairs = zip(targets.tolist(), predicted.tolist(), strict=True)
        return [("actual", "predicted"), *((names[a], names[p]) for a, p in pairs)]

    def told(self, answer: Array, top: int = 3) -> Mapping[str, Any]:
        """Return the likeliest classes with their probabilities, likeliest first."""
        order = np.argsort(-answer, kind="stable")[: max(top, 1)]
        return {self.form.classes[at]: float(answer[at]) for at in order}
