"""One grouped layout for every layer, so that the same code serves dense and convolutional layers.

A weight has the shape `[groups, out, taps, in]`: `in` and `out` count features *per group*, `taps`
are the positions of a kernel (1 for a dense layer). Activations are `[groups, samples, in]`:
every pixel of a feature map, or token of a sequence, is one sample (section 4.3 of the paper: "we
treat pixels in a given feature map as independent samples"). Whitening then always acts on the last
axis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def to_grouped(
    weight: Float[Tensor, ...], groups: int, transposed: bool = False
) -> Float[Tensor, "groups out taps in"]:
    """View a layer's weight as `[groups, out, taps, in]`.

    Args:
        weight: `[out, in]` of a dense layer, `[out, in/groups, *kernel]` of a convolution, or
            `[in, out/groups, *kernel]` of a transposed convolution.
        groups: number of groups of the layer.
        transposed: whether the weight belongs to a transposed convolution.
    """
    taps = math.prod(weight.shape[2:])
    if transposed:
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)
        return split.permute(0, 2, 3, 1)
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps)
    return split.transpose(2, 3)


def from_grouped(
    grouped: Float[Tensor, "groups out taps in"], shape: torch.Size, transposed: bool = False
) -> Float[Tensor, ...]:
    """Undo `to_grouped`: return the weight in the layer's own `shape`, in C order.

    By way of one axis: of a kernel of one position `reshape` would return a view whose strides read
    as channels-last, and with those torch 2.13 writes past the end of a buffer in the backward pass
    of a strided convolution on the CPU (batches that are odd, two threads).
    """
    order = (0, 3, 1, 2) if transposed else (0, 1, 3, 2)
    return grouped.permute(order).reshape(-1).view(shape)


def sampling_stride(positions: int, row: int, cap: int | None) -> int:
    """Return the distance between used positions, if an example has more than `cap` of them.

    The stride shares no factor with the length `row` of the last axis, so that the samples do not
    all come from a few columns of a feature map.
    """
    if cap is None or positions <= cap:
        return 1
    stride = -(-positions // cap)
    while math.gcd(stride, row) > 1:
        stride += 1
    return stride


def dense_samples(
    input: Float[Tensor, "*batch in"], cap: int | None
) -> tuple[Float[Tensor, "1 samples in"], int]:
    """Return the samples of a dense layer's input, and the number of examples.

    Args:
        input: `[in]`, `[batch, in]` or `[batch, *shared, in]`.
        cap: at most this many positions of `shared` are used per example (all if None).
    """
    features = input.shape[-1]
    if input.dim() <= 2:
        rows = input.reshape(1, -1, features)
        return rows, rows.shape[1]
    examples = input.shape[0]
    # reshape cannot infer −1 for a batch without examples.
    shared = input.reshape(examples, math.prod(input.shape[1:-1]), features)
    stride = sampling_stride(shared.shape[1], input.shape[-2], cap)
    return shared[:, ::stride].flatten(0, 1).unsqueeze(0), examples


def convolution_samples(
    input: Float[Tensor, "*batch channels spatial"], groups: int, spatial: int, cap: int | None
) -> tuple[Float[Tensor, "groups samples in"], int]:
    """Return the samples of a convolution's input: pixels are samples, channels are features.

    The input is not padded yet, so zeros at the border are never samples.

    Args:
        input: `[batch, channels, *spatial]`, or without the batch.
        groups: number of groups of channels; each has its own moments.
        spatial: number of spatial axes, 1 to 3.
        cap: at most this many pixels are used per example (all if None).
    """
    batched = input if input.dim() == spatial + 2 else input.unsqueeze(0)
    examples, channels = batched.shape[:2]
    number = math.prod(batched.shape[2:])
    pixels = batched.reshape(examples, groups, channels // groups, number)
    stride = sampling_stride(pixels.shape[-1], batched.shape[-1], cap)
    kept = pixels[..., ::stride].permute(1, 0, 3, 2)
    return kept.flatten(1, 2), examples
