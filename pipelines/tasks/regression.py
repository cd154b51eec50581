"""One or several numbers for each input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tasks.task import Array, Metric, Subset, Task, must, quarters, resampled_metric

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Task):
    """Numbers in their own units; raw outputs are standardised.

    The error is the share of the values' variance that is left unexplained, 1 − R², the mean over
    the values if there are several.
    """

    outputs = ("standardised", "values")
    loss_means = "half the squared error of standardised values"

    def check(self) -> None:
        """Check that there are values to predict."""
        must(bool(self.form.values), self.form.task, "the data have no values to predict")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """One number for each value."""
        return (len(self.form.values),)

    def _scale(self, like: Any) -> tuple[Any, Any]:
        mean = [value.mean for value in self.form.values]
        deviation = [value.deviation for value in self.form.values]
        if isinstance(like, np.ndarray):
            return np.array(mean), np.array(deviation)
        import torch

        kind = torch.float64
        return (
            torch.tensor(mean, dtype=kind, device=like.device),
            torch.tensor(deviation, dtype=kind, device=like.device),
        )

    def loss(self, raw: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return half the squared error of the standardised values, summed over them."""
        mean, deviation = self._scale(targets)
        wanted = ((targets - mean) / deviation).to(raw.dtype)
        found: Tensor = 0.5 * (raw - wanted).square().sum(1)
        return found

    def answer(self, raw: Any) -> Any:
        """Return the values in their own units, float64 [n, values]."""
        mean, deviation = self._scale(raw)
        return raw * deviation + mean

    def errors(self, answers: Any, targets: Any, inputs: Any) -> Any:
        """Return the squared error over the variance, the mean over the values."""
        _, deviation = self._scale(answers)
        return (((answers - targets) / deviation) ** 2).mean(1)

    def trivial(self, targets: Array, inputs: Array) -> NDArray[np.float64]:
        """Return the errors of always answering the mean of these very targets."""
        answers = np.broadcast_to(targets.mean(axis=0), targets.shape)
        found: NDArray[np.float64] = self.errors(np.array(answers), targets, inputs)
        return found

    def metrics(self, raw: Array, targets: Array, inputs: Array) -> list[Metric]:
        """Return the error, and of each value: root mean squared and mean absolute error, R²."""
        answers = self.answer(raw)
        found = super().metrics(raw, targets, inputs)
        for at, value in enumerate(self.form.values):
            of = "" if len(self.form.values) == 1 else f" of {value.name}"
            off = answers[:, at] - targets[:, at]
            square, own = off**2, targets[:, at] - targets[:, at].mean()
            found.append(resampled_metric(f"RMSE{of}", np.sqrt, [square]))
            found.append(resampled_metric(f"mean absolute error{of}", lambda a: a, [abs(off)]))
            if (own != 0).any():
                found.append(
                    resampled_metric(
                        f"R²{of}",
                        lambda s, m, q: 1 - s / np.maximum(q - m**2, 1e-300),
                        [square, own, own**2],
                    )
                )
        return found

    def parts(self, targets: Array, inputs: Array) -> list[Subset]:
        """Return the parts by column, and by quarters of each value."""
        found = super().parts(targets, inputs)
        for at, value in enumerate(self.form.values):
            found += quarters(value.name, targets[:, at])
        return found
