"""The input again, through a bottleneck: auto-encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tasks.task import Array, Metric, Task, must, resampled_metric

if TYPE_CHECKING:
    from torch import Tensor


class Reconstruction(Task):
    """Images; raw outputs are normalised as the network's inputs are, answers are pixel values.

    The error is the mean squared error of normalised pixels: the share of the pixels' variance
    that is not reconstructed.
    """

    outputs = ("normalised", "reconstruction")
    loss_means = "half the squared error of normalised pixels, summed"

    def check(self) -> None:
        """Check that inputs are images."""
        must(self.form.kind == "images", self.form.task, "the data must be images, not a table")

    @property
    def output_shape(self) -> tuple[int, ...]:
        """That of an image."""
        return self.form.input_shape

    def _scale(self, like: Any) -> tuple[Any, Any]:
        both: tuple[Any, Any]
        if isinstance(like, np.ndarray):
            both = np.array(self.form.mean), np.array(self.form.deviation)
        else:
            import torch

            kind = like.dtype if like.dtype.is_floating_point else torch.float32
            both = (
                torch.tensor(self.form.mean, dtype=kind, device=like.device),
                torch.tensor(self.form.deviation, dtype=kind, device=like.device),
            )
        return both[0].reshape(-1, 1, 1), both[1].reshape(-1, 1, 1)

    def _normalised(self, pixels: Any) -> Any:
        mean, deviation = self._scale(pixels)
        return (pixels * (1 / self.form.levels) - mean) / deviation

    def loss(self, raw: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return half the squared error, summed over pixels."""
        found: Tensor = 0.5 * (raw - self._normalised(inputs)).square().sum((1, 2, 3))
        return found

    def answer(self, raw: Any) -> Any:
        """Return pixel values, 0 to 255 (or 65,535), not rounded."""
        mean, deviation = self._scale(raw)
        return ((raw * deviation + mean) * self.form.levels).clip(0, self.form.levels)

    def errors(self, answers: Any, targets: Any, inputs: Any) -> Any:
        """Return the mean over pixels of the squared error over the variance."""
        off = self._normalised(answers) - self._normalised(inputs)
        return (off**2).reshape(len(off), -1).mean(1)

    def trivial(self, targets: Array, inputs: Array) -> NDArray[np.float64]:
        """Return the errors of always answering the mean of these very images."""
        mean = np.broadcast_to(inputs.mean(axis=0, keepdims=True), inputs.shape)
        found: NDArray[np.float64] = self.errors(mean, targets, inputs)
        return found

    def trivial_told(self, targets: Array) -> str:
        """Return that it is the mean image."""
        return "always the mean image"

    def metrics(self, raw: Array, targets: Array, inputs: Array) -> list[Metric]:
        """Return the error, the root mean squared error in grey levels, and the PSNR."""
        off = (self.answer(raw) - inputs).reshape(len(raw), -1)
        square = [(off**2).mean(axis=1)]
        levels = self.form.levels
        return [
            *super().metrics(raw, targets, inputs),
            resampled_metric("RMSE", np.sqrt, square, "grey levels"),
            resampled_metric(
                "PSNR", lambda s: 10 * np.log10(levels**2 / np.maximum(s, 1e-12)), square, "dB"
            ),
        ]

    def compared(self, answer: Array, target: Array) -> dict[str, Any]:
        """Return the reconstruction itself, rounded, [channels][rows][columns]."""
        return {"reconstruction": np.rint(answer).astype(int).tolist()}

    def table(self, answers: Array, targets: Array) -> list[tuple[Any, ...]]:
        """Return a header only: images do not fit in a table."""
        return [("example",)]

    def told(self, answer: Array, top: int = 3) -> Mapping[str, Any]:
        """Return nothing: what counts is the error, which `predict` adds."""
        return {}
