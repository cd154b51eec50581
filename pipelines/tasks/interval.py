"""How much worse one classifier may be than another, from their answers to the same images.

The bound is Tango's score bound for a difference of paired proportions (T. Tango, «Equivalence test
and confidence interval for the difference in proportions for the paired-sample design», Statistics
in Medicine 17, 1998, 891–908), shifted by half an image, the usual correction for continuity:
without it the chance of error exceeds the nominal 5 % a little. Images on which both are right or
both wrong only count in their number.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
_CORRECTION = 0.5  # images


def upper_bound(lost: int, won: int, images: int, level: float = LEVEL) -> float:
    """Return the one-sided upper bound of a paired difference of error rates.

    Args:
        lost: Images that the candidate has wrong and the champion right.
        won: Images that the candidate has right and the champion wrong.
        images: Images both were asked about.
        level: Probability with which the true difference lies below the bound, at least.

    Returns:
        A share in [-1, 1]: the error rate may have risen by so much and no more.

    Raises:
        ValueError: If the counts are negative, or more than there are images, or there are none.
    """
    if lost < 0 or won < 0 or images < 1 or lost + won > images:
        raise ValueError(f"lost {lost} and won {won} of {images} images: no such outcome")
    z = NormalDist().inv_cdf(level)
    low, high = (lost - won) / images, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _score(lost, won, images, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _score(lost: int, won: int, images: int, difference: float) -> float:
    """Return the standardised distance of the counts from a supposed true difference.

    Its variance is that of the likeliest probabilities that have this difference.
    """
    b = (2 * images - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    likeliest = (math.sqrt(max(b * b - 8 * images * c, 0.0)) - b) / (4 * images)
    variance = images * (2 * likeliest + difference * (1 - difference))
    distance = lost - won + _CORRECTION - images * difference
    return distance / math.sqrt(max(variance, 1e-300))


def images_needed(margin: float) -> int:
    """Return the fewest images on which identical answers stay within a margin.

    Args:
        margin: A share above 0; below 1e-8 counts as that.
    """
    low, high = 0, 1
    while upper_bound(0, 0, high) > max(margin, 1e-8):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_bound(0, 0, middle) <= margin else (middle, high)
    return high
