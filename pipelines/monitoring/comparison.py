"""Whether requests still look like held-out data: two-sample tests and one decision.

Three kinds of test are made, as far as there is something to compare:

- the drift score of the model's own whitening, by Kolmogorov-Smirnov;
- each number of the answers, by Kolmogorov-Smirnov. This is the standard detector beside ours:
  black-box shift detection on softmax outputs (Lipton et al. 2018; Rabanser et al. 2019);
- the answered classes, by a chi-square test of homogeneity.

The false-alarm rate is shared evenly among the kinds, and within a kind among its tests
(Bonferroni), so that one look alarms on unchanged inputs with at most this probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Kind = Literal["score", "answers", "labels"]
RATE = 0.01
"""False alarms per look on unchanged inputs, unless told otherwise."""
MINIMUM = 100
"""Examples that a decision needs, unless told otherwise."""
_DIGITS = 4  # runtimes and cards differ beyond: a constant answer would else look shifted
_FEWEST = 5.0  # expected answers of a class for the chi-square distribution to hold


def _none() -> NDArray[np.float64]:
    return np.zeros(0)


def _none_of_any_length() -> NDArray[np.float64]:
    return np.zeros((0, 0))


def _no_labels() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Examples:
    """What is known of some examples; a field is empty where it is not known.

    Attributes:
        scores: Drift scores, float64 [n]; larger is further from the training data.
        answers: The first numbers of the answers, float64 [m, numbers].
        labels: Positions of the answered classes, int64 [k].
    """

    scores: NDArray[np.float64] = field(default_factory=_none)
    answers: NDArray[np.float64] = field(default_factory=_none_of_any_length)
    labels: NDArray[np.int64] = field(default_factory=_no_labels)

    @property
    def count(self) -> int:
        """How many examples there are."""
        return max(len(self.scores), len(self.answers), len(self.labels))

    def taken(self, at: NDArray[np.int64]) -> Examples:
        """Return the examples at some places, of fields that are known."""
        return Examples(
            scores=self.scores[at] if len(self.scores) else self.scores,
            answers=self.answers[at] if len(self.answers) else self.answers,
            labels=self.labels[at] if len(self.labels) else self.labels,
        )


@dataclass(frozen=True)
class Test:
    """One two-sample test.

    Attributes:
        kind: What was compared.
        name: The same in words.
        method: Name of the test.
        statistic: Kolmogorov-Smirnov: the largest difference of the two distributions, 0 to 1.
            Chi-square: Cramér's V, 0 to 1.
        p: Probability of so large a statistic if nothing has changed.
        level: The p below which it alarms: its part of the rate.
    """

    __test__ = False  # pytest collects no class of this name

    kind: Kind
    name: str
    method: str
    statistic: float
    p: float
    level: float

    @property
    def alarms(self) -> bool:
        """Whether it says that something has changed."""
        return self.p <= self.level


def compare(
    reference: Examples, seen: Examples, rate: float, minimum: int, classes: Sequence[str] = ()
) -> tuple[Test, ...]:
    """Test what was seen against a reference.

    Args:
        reference: Held-out examples.
        seen: Examples of requests.
        rate: Probability of any alarm if nothing has changed.
        minimum: Examples that each kind of test needs on both sides.
        classes: Names, where answers are a probability for each.

    Returns:
        The tests that could be made; none if there are too few examples.
    """
    kinds: list[list[Test]] = []
    if min(len(reference.scores), len(seen.scores)) >= minimum:
        kinds.append([_ks("score", "drift score", reference.scores, seen.scores)])
    width = reference.answers.shape[1]
    same = width > 0 and seen.answers.shape[1:] == (width,)
    if same and min(len(reference.answers), len(seen.answers)) >= minimum:
        named = len(classes) >= width
        kinds.append(
            [
                _ks(
                    "answers",
                    f"probability of {classes[at]}" if named else f"answer {at + 1}",
                    reference.answers[:, at],
                    seen.answers[:, at],
                )
                for at in range(width)
            ]
        )
    if min(len(reference.labels), len(seen.labels)) >= minimum:
        kinds.append([_chi_square(reference.labels, seen.labels)])
    return tuple(
        Test(one.kind, one.name, one.method, one.statistic, one.p, rate / len(kinds) / len(tests))
        for tests in kinds
        for one in tests
    )


def alarms(tests: Sequence[Test]) -> tuple[Test, ...]:
    """Return the tests that alarm, the surest first; any of them decides for drift."""
    return tuple(sorted((one for one in tests if one.alarms), key=lambda one: one.p / one.level))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with a few significant digits; those that are not finite stay."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(values))))
        found: NDArray[np.float64] = np.round(values * scale) / scale
    return np.where(np.isfinite(found), found, values)


def _ks(kind: Kind, name: str, first: NDArray[Any], second: NDArray[Any]) -> Test:
    # The exact distribution takes seconds at these sizes and differs in the third digit.
    found = stats.ks_2samp(_rounded(first), _rounded(second), method="asymp")
    return Test(kind, name, "Kolmogorov–Smirnov", float(found.statistic), float(found.pvalue), 0.0)


def _chi_square(first: NDArray[np.int64], second: NDArray[np.int64]) -> Test:
    """Compare two samples of classes; those too rare for the test are counted as one."""
    largest = int(max(first.max(), second.max())) + 1
    counts = np.stack([np.bincount(part, minlength=largest) for part in (first, second)])
    total = counts.sum(axis=0)
    rare = total * min(len(first), len(second)) / total.sum() < _FEWEST
    table = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    method = "chi-square"
    if table.shape[1] < 2:
        return Test("labels", "answered classes", method, 0.0, 1.0, 0.0)
    statistic, p, *_ = stats.chi2_contingency(table, correction=False)
    size = math.sqrt(float(statistic) / float(table.sum()))  # Cramér's V of two rows
    return Test("labels", "answered classes", method, size, float(p), 0.0)
