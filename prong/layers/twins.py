"""The whitened twins of torch's dense and convolutional layers, and the change of class."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from prong.layers.aside import MOST_ASIDE
from prong.layers.autograd import NaturalLinear
from prong.layers.base import Whitened
from prong.layers.observing import refuse_transforms, transforms_active
from prong.linalg.dtypes import product_dtype
from prong.linalg.layout import convolution_samples, dense_samples

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from prong.layers.aside import Aside


class WhitenedDense(Whitened):
    """What dense layers share: rows are samples, in any number of leading dimensions."""

    def samples(self, input: Tensor) -> tuple[Float[Tensor, "1 samples in"], int]:
        """Every row of the input is a sample."""
        return dense_samples(input, self.positions)

    def gradient_samples(self, gradient: Tensor) -> tuple[Float[Tensor, "1 samples out"], int]:
        """Every row of the gradient is a sample."""
        return dense_samples(gradient, self.positions)

    def exact(self, input: Tensor, preconditioner: Tensor) -> bool:
        """Return whether P may multiply h − c: all types are equal and products are exact."""
        types = {input.dtype, self.weight.dtype, preconditioner.dtype}
        return (
            not self.canonical_given
            and input.layout is torch.strided
            and types == {product_dtype(preconditioner.dtype, preconditioner.device)}
            and not torch.is_autocast_enabled(input.device.type)
            and self.weight.requires_grad
            and not transforms_active()
        )


class WhitenedLinear(WhitenedDense, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` in whitened coordinates; the input may have any leading dimensions."""

    PLAIN = nn.Linear

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Apply V U (h − c) + d along the last axis."""
        if self.aside is not None and not self.canonical_given:
            return self._together(input, self.aside)
        self.observe(input)
        rows, preconditioner = math.prod(input.shape[:-1]), self.precision_matrix
        if (
            preconditioner is not None
            and rows < self.out_features
            and self.exact(input, preconditioner)
        ):
            output: Tensor = NaturalLinear.apply(  # type: ignore[no-untyped-call]
                input,
                self.weight,
                self.bias,
                self.mean,
                preconditioner,
                self.precision_damping,
                None if torch.compiler.is_compiling() else self.last_pass,
            )
            return output
        if self.whitens_activations(input, rows):
            white = F.linear(input if self.bias is None else input - self.mean[0], self.whitener[0])
            return F.linear(white, self.weight, self.bias)
        return self.watched(F.linear(input, *self.fold()))

    def _together(
        self, input: Float[Tensor, "*batch in"], aside: Aside
    ) -> Float[Tensor, "*batch out"]:
        """Run as one of many narrow layers that are processed together (see `narrow_layers`)."""
        self.follow_bias()
        if torch.is_grad_enabled():
            refuse_transforms()
        if input.layout is not torch.strided:
            input = input.to_dense()
        centred = input if self.bias is None else input - self.mean[0]
        if self.moments is not None and self.observes():
            full = len(aside.inputs) >= MOST_ASIDE
            if full or torch.compiler.is_compiling() or self.bias is None:
                self.observe(input)
            else:
                # Store a new tensor, because the input may be changed in place later.
                samples, examples = self.samples(centred.detach())
                aside.inputs.append((samples[0], examples))
        return F.linear(centred, self.weight, self.bias)


class _WhitenedConvolution(Whitened):
    """Base class of the convolutions: pixels are samples, channels are features."""

    kernel_size: Any
    in_channels: int
    padding_mode: str

    def samples(self, input: Tensor) -> tuple[Float[Tensor, "groups samples in"], int]:
        """Return every pixel of the unpadded input as a sample of each group's channels."""
        return convolution_samples(
            input, self.feature_groups, len(self.kernel_size), self.positions
        )

    def gradient_samples(self, gradient: Tensor) -> tuple[Float[Tensor, "groups samples out"], int]:
        """Return every pixel of the output as a sample of each group's output channels."""
        return convolution_samples(
            gradient, self.feature_groups, len(self.kernel_size), self.positions
        )


class _WhitenedForward(_WhitenedConvolution):
    """Forward pass of Conv1d, Conv2d and Conv3d."""

    RUN: ClassVar[Any]

    def forward(self, input: Tensor) -> Tensor:
        """Pad, centre, whiten with the 1×1 filter U, then convolve with V and add d."""
        self.observe(input)
        pixels = input.numel() // max(1, self.in_channels)
        if self.whitens_activations(input, pixels):
            return self._on_activations(input)
        return self.watched(self._conv_forward(input, *self.fold()))  # type: ignore[operator]

    def _on_activations(self, input: Tensor) -> Tensor:
        spatial = len(self.kernel_size)
        batched = input if input.dim() == spatial + 2 else input.unsqueeze(0)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(batched, self._reversed_padding_repeated_twice, mode=mode)  # type: ignore[arg-type]
        groups = self.feature_groups
        features, pixels = padded.shape[1] // groups, math.prod(padded.shape[2:])
        split = padded.reshape(len(padded), groups, features, pixels)
        if self.bias is not None:
            split = split - self.mean[None, :, :, None]
        white = (self.whitener @ split).reshape(padded.shape)
        output: Tensor = type(self).RUN(
            white, self.weight, self.bias, self.stride, 0, self.dilation, groups
        )
        return output if batched is input else output.squeeze(0)


class WhitenedConv1d(_WhitenedForward, nn.Conv1d):  # type: ignore[misc]
    """`nn.Conv1d` in whitened coordinates."""

    PLAIN = nn.Conv1d
    RUN = staticmethod(F.conv1d)


class WhitenedConv2d(_WhitenedForward, nn.Conv2d):  # type: ignore[misc]
    """`nn.Conv2d` in whitened coordinates."""

    PLAIN = nn.Conv2d
    RUN = staticmethod(F.conv2d)


class WhitenedConv3d(_WhitenedForward, nn.Conv3d):  # type: ignore[misc]
    """`nn.Conv3d` in whitened coordinates."""

    PLAIN = nn.Conv3d
    RUN = staticmethod(F.conv3d)


class _WhitenedTransposed(_WhitenedConvolution):
    """Forward pass of the transposed convolutions; c = 0 there."""

    TRANSPOSED = True
    RUN: ClassVar[Any]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Whiten with the 1×1 filter U, then run the transposed convolution with V and add d."""
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode={self.padding_mode!r}: only 'zeros' is allowed")
        self.observe(input)
        padding = self._output_padding(  # type: ignore[operator]
            input,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            len(self.kernel_size),
            self.dilation,
        )
        weight, bias = self.fold()
        run = type(self).RUN
        output: Tensor = run(
            input, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation
        )
        return self.watched(output)


class WhitenedConvTranspose1d(_WhitenedTransposed, nn.ConvTranspose1d):  # type: ignore[misc]
    """`nn.ConvTranspose1d` in whitened coordinates."""

    PLAIN = nn.ConvTranspose1d
    RUN = staticmethod(F.conv_transpose1d)


class WhitenedConvTranspose2d(_WhitenedTransposed, nn.ConvTranspose2d):  # type: ignore[misc]
    """`nn.ConvTranspose2d` in whitened coordinates."""

    PLAIN = nn.ConvTranspose2d
    RUN = staticmethod(F.conv_transpose2d)


class WhitenedConvTranspose3d(_WhitenedTransposed, nn.ConvTranspose3d):  # type: ignore[misc]
    """`nn.ConvTranspose3d` in whitened coordinates."""

    PLAIN = nn.ConvTranspose3d
    RUN = staticmethod(F.conv_transpose3d)


TWINS: dict[type[nn.Module], type[Whitened]] = {
    twin.PLAIN: twin
    for twin in (
        WhitenedLinear,
        WhitenedConv1d,
        WhitenedConv2d,
        WhitenedConv3d,
        WhitenedConvTranspose1d,
        WhitenedConvTranspose2d,
        WhitenedConvTranspose3d,
    )
}


_ATTRIBUTES: dict[str, bool | None] = {
    **dict.fromkeys(("activations", "gradients_wanted", "paused", "without_gradients"), False),
    **dict.fromkeys(("seen", "uncentred", "replaced"), False),
    **dict.fromkeys(("moments", "backward_moments", "variances", "side_stream"), None),
    **dict.fromkeys(("last_pass", "aside", "positions", "dropped_centre"), None),
}


def adopt(layer: nn.Module) -> Whitened:
    """Turn a plain layer into its whitened twin, in place, with U = I and c = 0."""
    twin = TWINS[type(layer)]
    layer.__class__ = twin
    assert isinstance(layer, twin)
    groups, weight = layer.feature_groups, layer.weight
    features = (weight.shape[0] if layer.TRANSPOSED else weight.shape[1] * groups) // groups
    dtype = torch.promote_types(weight.dtype, torch.float32)
    identity = torch.eye(features, dtype=dtype, device=weight.device)
    layer.register_buffer("whitener", identity.repeat(groups, 1, 1))
    layer.register_buffer("mean", torch.zeros(groups, features, dtype=dtype, device=weight.device))
    layer.register_buffer("output_whitener", None)
    layer.register_buffer("precision_matrix", None)
    layer.register_buffer("precision_damping", None)
    for name, value in _ATTRIBUTES.items():
        setattr(layer, name, value)
    return layer


def release(layers: list[Whitened]) -> None:
    """Turn whitened layers back into plain ones, in place, without changing their functions.

    All layers are folded before any weight is written, because layers may share a weight V.
    """
    with torch.no_grad():
        folded = [layer.fold() for layer in layers]
        for layer, (weight, bias) in zip(layers, folded, strict=True):
            layer.weight.copy_(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
    for layer in layers:
        for name in layer.PHI:
            del layer._buffers[name]
        for name in _ATTRIBUTES:
            del layer.__dict__[name]
        layer.__class__ = layer.PLAIN  # type: ignore[assignment]
