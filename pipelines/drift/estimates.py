"""Means, covariances and tails, estimated in float64 on one thread: equal data, equal numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.systems.onnx.drift_graph import Tail, Whitener

Array = NDArray[Any]
DAMPING = 1e-3
"""Added to each covariance's diagonal, as a share of the diagonal's mean."""
_TAIL = 0.9


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in torch on one thread, so that no sum depends on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class SecondMoments:
    """Sums over samples that come in parts; the memory does not grow with their number."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.shift = torch.zeros(features, dtype=torch.float64)
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._square = torch.zeros(features, features, dtype=torch.float64)

    def add(self, values: Array) -> None:
        """Add samples [n, features]."""
        part = torch.from_numpy(np.ascontiguousarray(values)).double()
        if not self.count:  # sums around a value near the mean lose no digits
            self.shift = part.mean(0)
        part = part - self.shift
        self.count += len(part)
        self._sum += part.sum(0)
        self._square += part.T @ part

    def whitening(self) -> Whitener | None:
        """Return c, the mean, and U with U Σ Uᵀ = I for the damped covariance Σ = C + ε I.

        U is the inverse of Σ's Cholesky factor: the distance ‖U(h − c)‖² = (h − c)ᵀ Σ⁻¹ (h − c)
        is that of any other whitener, and no sign or order of eigenvectors is open.

        Returns:
            None if nothing varies.
        """
        mean = self._sum / self.count
        covariance = self._square / self.count - torch.outer(mean, mean)
        whitener = _whitener(covariance, DAMPING * float(covariance.diagonal().mean()))
        return None if whitener is None else Whitener((self.shift + mean).numpy(), whitener)


def _whitener(covariance: torch.Tensor, damping: float) -> Array | None:
    """Return L⁻¹ of the Cholesky factor L Lᵀ of C + ε I; None if ε is not above 0."""
    if not (np.isfinite(damping) and damping > 0):
        return None
    identity = torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance + damping * identity)
    found: Array = torch.linalg.solve_triangular(factor, identity, upper=False).numpy()
    return found


def whitening(values: Array) -> Whitener | None:
    """Return the whitening of samples [n, features]; see `SecondMoments.whitening`."""
    moments = SecondMoments(values.shape[1])
    moments.add(values)
    return moments.whitening()


def class_whitening(values: Array, labels: Array) -> tuple[Array, Array] | None:
    """Return means c_k [classes, f] of the classes there are, and one whitener U within classes.

    U whitens Σ = 1/n Σᵢ (xᵢ − c_yᵢ)(xᵢ − c_yᵢ)ᵀ + ε I (Lee et al., arXiv 1807.03888).

    Args:
        values: [n, f].
        labels: [n].

    Returns:
        None if nothing varies within classes.
    """
    classes, places = np.unique(labels, return_inverse=True)
    wide = values.astype(np.float64)
    centres = np.stack([wide[places == at].mean(axis=0) for at in range(len(classes))])
    within = SecondMoments(values.shape[1])
    within.add(wide - centres[places])
    found = within.whitening()
    return None if found is None else (centres, found.matrix)


def joint_whitening(numbers: Array) -> Whitener | None:
    """Return μ and U of a few numbers [n, k], such as log distances, that are near normal.

    With few samples the covariance is drawn to its diagonal: S = (1 − α) C + α diag C, where
    α = max(0.01, k/(n + k)); each number is brought to variance 1 first.

    Returns:
        None if no number varies.
    """
    count, width = numbers.shape
    mean, deviation = numbers.mean(axis=0), numbers.std(axis=0)
    if not np.isfinite(deviation).all() or not (deviation > 0).any():
        return None
    scale = np.maximum(deviation, 1e-6 * deviation.max())
    unit = torch.from_numpy((numbers - mean) / scale)
    covariance = unit.T @ unit / count
    alpha = max(0.01, width / (count + width))
    covariance = (1 - alpha) * covariance + alpha * torch.diag(covariance.diagonal())
    whitener = _whitener(covariance, 1e-6)
    return None if whitener is None else Whitener(mean, whitener / scale)


def tail(values: Array) -> Tail | None:
    """Return how rare values are among calibrated ones [n]; None if nothing varies."""
    ordered = np.sort(values.astype(np.float64))
    start = float(np.quantile(ordered, _TAIL))
    excess = ordered[ordered > start] - start
    if not (np.isfinite(ordered).all() and len(excess) and excess.mean() > 0):
        return None
    return Tail(ordered, start, float(excess.mean()))
