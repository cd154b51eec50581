"""Gates that hold a version to what it should compute: the fold, torch, itself, its own record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.gates.finding import Finding, held_to, not_run, one_line

_Z = NormalDist().inv_cdf(0.95)
_MOST_VALUES = 64  # of an answer; more are pixels


def fold(figure: float, limit: float) -> Finding:
    """Did folding the whitening away leave the function as it was?

    Args:
        figure: Largest difference of raw outputs, whitened against folded, as verified when the
            version was registered, relative to the largest.
        limit: `gates.parity`.
    """
    return held_to("fold", figure, limit, "whitened – folded, as verified and registered")


def parity(registered: float, measured: Mapping[int, float] | None, limit: float) -> Finding:
    """Do torch and ONNX Runtime give the same answers?

    Args:
        registered: Largest difference of raw outputs, as verified when the version was registered,
            relative to the largest.
        measured: Batch → difference, measured now; None where the weights are not at hand.
        limit: `gates.parity`.
    """
    if math.isnan(registered):
        return not_run("parity", "no figure is registered")
    worst, said = registered, f"registered {registered:.1e}"
    if measured is None:
        said += "; not measured again, as these weights are not in this checkout"
    else:
        values = ", ".join(f"{batch}: {value:.1e}" for batch, value in measured.items())
        said += f"; measured now at batch {values}"
        # NaN must not vanish in a maximum.
        worst = max([registered, *(math.inf if v != v else v for v in measured.values())])
    return held_to("parity", worst, limit, said)


def batch(differences: Mapping[int, float | Exception], limit: float) -> Finding:
    """Does an image get the same answer alone and in company?

    Args:
        differences: Batch → largest difference from the answers at batch 1, of logits (relative to
            the largest) and of probabilities; or what the runtime raised at that batch.
        limit: `gates.parity`.
    """
    broken = {at: value for at, value in differences.items() if isinstance(value, Exception)}
    if broken:
        at, error = next(iter(broken.items()))
        return Finding("batch", "fail", None, limit, one_line(f"at batch {at}: {error}"))
    # NaN must not vanish in a maximum.
    values = {
        at: math.inf if value != value else value
        for at, value in differences.items()
        if not isinstance(value, Exception)
    }
    worst = max(values, key=lambda at: values[at])
    beyond = [str(at) for at, value in values.items() if not value <= limit]
    said = f"{len(values)} batches up to {max(values)} against batch 1; most at batch {worst}"
    said += f"; beyond the limit at batch {', '.join(beyond)}" if beyond else ""
    return held_to("batch", values[worst], limit, said)


def answers(difference: float, ties: int, labels: int, images: int, limit: float) -> Finding:
    """Do the answers follow from the raw outputs, as probabilities do from logits?

    Tests and gates count wrong answers by the logits, and `predict` answers by the probabilities.

    Args:
        difference: Largest difference of the answers from what the task makes of the raw outputs,
            of a classifier from the softmax of the logits.
        ties: Answers whose two outputs have another label each, by a difference of rounding; up to
            one in a hundred is chance, and one always.
        labels: Other answers whose two outputs have another label each.
        images: Answers looked at.
        limit: `gates.parity`, of `difference`.
    """
    said = f"{images} answers, held to those that follow from the raw outputs"
    if labels or ties > max(1, images // 100):
        said += f"; the labels of {labels + ties} answers differ"
        return Finding("answers", "fail", difference, limit, said)
    return held_to("answers", difference, limit, said)


def same_labels(other: int, examples: int, limit: float) -> Finding:
    """Does a variant give the labels that its champion gives?

    Args:
        other: Examples with another label.
        examples: All that both were asked about, at least 1.
        limit: Of the share of those with another label.
    """
    said = f"{other} of {examples} gate examples have another label than the champion's"
    return held_to("agreement", other / examples, limit, said)


def same_values(mine: NDArray[Any], theirs: NDArray[Any], limit: float) -> Finding:
    """Does a variant answer what its champion answers, where nothing is classified?

    Args:
        mine: Answers of the variant, [n, …].
        theirs: Of the champion to the same examples.
        limit: Of the mean absolute difference over the standard deviation of the champion's
            answers; of several values, that of the worst.
    """
    one, other = (
        answers.reshape(len(answers), -1).astype(np.float64) for answers in (mine, theirs)
    )
    if len(one) and one.shape[1] > _MOST_VALUES:  # an image is one value of many pixels
        one, other = one.reshape(-1, 1), other.reshape(-1, 1)
    spread = np.maximum(other.std(axis=0), np.finfo(np.float32).tiny)
    with np.errstate(invalid="ignore"):
        worst = float((np.abs(one - other).mean(axis=0) / spread).max())
    # NaN must not vanish.
    worst = math.inf if math.isnan(worst) else worst
    said = f"mean difference from the champion's answers to {len(mine)} examples, of their spread"
    return held_to("agreement", worst, limit, said)


def skew(
    error: float,
    images: int,
    registered: float,
    registered_images: int,
    same: bool,
    limit: float,
    spread: float | None = None,
) -> Finding:
    """Does the file, given raw inputs, score as the network it was made from?

    What is wrong between the two, such as another normalisation of the pixels, shows here.

    Args:
        error: Error on the test split, a share, measured now.
        images: Examples of that split.
        registered: Error of the torch network, when the version was registered.
        registered_images: Examples behind it.
        same: Whether both splits are the same.
        limit: `gates.skew`.
        spread: Standard deviation of the examples' errors, where an error is not 0 or 1.
    """
    wrong = "wrong" if spread is None else "error"
    said = f"{error:.2%} of {images} test images {wrong}, registered {registered:.2%}"
    if same:
        return held_to("skew", abs(error - registered), limit, said)
    if spread is None:
        low = _rise_at_least(error, images, registered, registered_images)
    else:
        chance = _Z * spread * math.sqrt(1 / images + 1 / max(registered_images, 1))
        low = max(error - registered - chance, 0.0)
    said += f" of {registered_images} others; beyond chance (95 %) it rose by {low:.2%}"
    return held_to("skew", low, limit, said)


def _rise_at_least(new: float, count: int, old: float, before: int) -> float:
    """Return the lower 95 % bound of new − old, two shares of different images; at least 0.

    Newcombe's hybrid of two Wilson intervals (Statistics in Medicine 17, 1998, 873–890).
    """
    low, high = wilson(new, count)[0], wilson(old, before)[1]
    return max(new - old - math.hypot(new - low, high - old), 0.0)


def wilson(share: float, count: int, z: float = _Z) -> tuple[float, float]:
    """Return Wilson's interval of a share.

    Args:
        share: As counted.
        count: Examples behind it, at least 1.
        z: Quantile of the normal distribution; the default's is 90 % two-sided, 95 % on one side.
    """
    square = z * z
    middle = share + square / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (middle - half) / (1 + square / count), (middle + half) / (1 + square / count)
