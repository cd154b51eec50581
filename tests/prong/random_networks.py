"""Random small networks over every kind of layer, for the property tests."""

from __future__ import annotations

import warnings

import torch
from hypothesis import strategies as st
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@st.composite
def convolutions(draw, spatial, channels, sizes):
    """One convolution that fits its input, its output's channels and its output's sizes."""
    groups = draw(st.sampled_from([g for g in (1, 2, 3, channels) if channels % g == 0]))
    out = groups * draw(st.integers(1, 3))
    bias = draw(st.booleans())
    kernel = draw(st.integers(1, 3))
    if draw(st.integers(0, 3)) == 0:
        stride = draw(st.integers(1, 2))
        layer = TRANSPOSED[spatial](
            channels, out, kernel, stride=stride, groups=groups, bias=bias,
            dilation=draw(st.integers(1, 2)), output_padding=stride - 1 if stride > 1 else 0,
        )  # fmt: skip
    else:
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        dilation = draw(st.integers(1, 2))
        if draw(st.booleans()):
            layer = CONVOLUTIONS[spatial](
                channels, out, kernel, padding="same", dilation=1, groups=groups, bias=bias,
                padding_mode=mode,
            )  # fmt: skip
        else:
            layer = CONVOLUTIONS[spatial](
                channels, out, kernel, padding=draw(st.integers(0, 2)), groups=groups, bias=bias,
                stride=draw(st.integers(1, 2)), dilation=dilation, padding_mode=mode,
            )  # fmt: skip
    return layer


@st.composite
def networks(draw):
    """A network and the shape of one example for it."""
    torch.manual_seed(draw(st.integers(0, 99)))
    spatial = draw(st.integers(0, 3))
    norms = draw(st.booleans())
    layers: list[nn.Module] = []
    if spatial == 0:
        width = draw(st.integers(1, 6))
        leading = draw(st.sampled_from([(), (3,), (2, 2)]))
        shape = (*leading, width)
        for _ in range(draw(st.integers(1, 3))):
            out = draw(st.integers(1, 6))
            layers += [nn.Linear(width, out, bias=draw(st.booleans())), nn.Tanh()]
            width = out
        return nn.Sequential(*layers), shape
    channels = draw(st.sampled_from([1, 2, 3, 4, 6] if spatial < 3 else [1, 2]))
    size = {1: 9, 2: 6, 3: 4}[spatial]
    shape = (channels, *[size] * spatial)
    sizes = (size,) * spatial
    for _ in range(draw(st.integers(1, 2))):
        layer = draw(convolutions(spatial, channels, sizes))
        try:
            with warnings.catch_warnings():  # 'same' with an even kernel warns, once per process
                warnings.simplefilter("ignore")
                out = layer(torch.zeros(1, channels, *sizes))
        except RuntimeError:  # kernel larger than the padded input: take the layer out
            continue
        if min(out.shape[2:]) < 3:
            continue
        layers.append(layer)
        channels, sizes = out.shape[1], tuple(out.shape[2:])
        if norms:
            layers.append(NORMS[spatial](channels))
        layers.append(nn.Tanh())
    # Few features at the end: a wide dense layer would take all the time and show nothing more.
    layers += [POOLS[spatial](1), nn.Flatten(), nn.Linear(channels, 3)]
    return nn.Sequential(*layers), shape
