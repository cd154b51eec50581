"""What a network is asked to be: the description that `train.network`'s function is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipelines.tasks.form import CLASSIFICATION


@dataclass(frozen=True)
class NetworkSignature:
    """Inputs, outputs and options of a network.

    The network maps a tensor [batch, *input_shape] to one of [batch, *output_shape]. The pipeline
    wraps it and normalises the inputs before, so that raw examples can go in.

    Attributes:
        input_shape: Of one example: (channels, height, width) for images, (features,) for the rows
            of a table, whose categories have become one feature each.
        output_shape: Of one answer: (number of classes,) for logits, (number of values,) for
            standardised values, the input's shape where the input is to be reconstructed.
        classes: Class names; the position is the label. Empty without classes.
        mean: Per channel, of pixel values in [0, 1]. Already subtracted; for information only.
        deviation: Per channel, of pixel values in [0, 1]. Already divided by.
        width: `train.width`, the channels of the first layers; free for any use.
        hidden: `train.hidden`, the units of dense layers; free for any use.
        batch_norm: Whether `train.method` is one with batch normalisation (`bn`, `prong+`).
        task: `classification`, `regression`, `reconstruction`, or `module:Class`.
        input_dtype: Of what the network gets: float32, normalised to mean 0 and deviation 1.
        output_dtype: Of the answer.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    width: int
    hidden: int
    batch_norm: bool
    task: str = CLASSIFICATION
    input_dtype: torch.dtype = torch.float32
    output_dtype: torch.dtype = torch.float32

    @property
    def channels(self) -> int:
        """Channels of an image, such as 1 (grey) or 3 (RGB); features of a row."""
        return self.input_shape[0]

    @property
    def size(self) -> int:
        """Edge of the square images, pixels; 1 for rows."""
        return self.input_shape[-1] if len(self.input_shape) > 1 else 1

    @property
    def outputs(self) -> int:
        """Number of outputs: of logits, of values, or of all pixel values."""
        return math.prod(self.output_shape)
