"""Batch normalisation over the samples of all ranks.

`torch.nn.SyncBatchNorm` raises "SyncBatchNorm expected input tensor to be on GPU or XPU or …" for a
tensor on the CPU. This implementation runs the same code on every device and backend. Each rank
sends the number of its samples, and the mean and centred sum of squares of every channel. All ranks
merge these in the order of the ranks, by

    μ = Σ n_r μ_r / n,   S = Σ (S_r + n_r (μ_r − μ)²).

This avoids cancellation with large means, and the running statistics are bit-identical on all
ranks. The backward pass adds up Σ g and Σ g x̂ (Ioffe & Szegedy, "Batch Normalization", 2015,
section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from prong.distributed.ranks import Ranks
from prong.linalg.dtypes import product_dtype, wide_dtype

if TYPE_CHECKING:
    import torch.distributed as dist
    from jaxtyping import Float
    from torch import Tensor


class SynchronisedBatchNorm(nn.Module):
    """Base class of the three batch normalisations; it keeps the plain module's state.

    Attributes:
        ranks: the processes whose samples together are one batch.
    """

    PLAIN: ClassVar[type[nn.Module]]

    ranks: Ranks
    training: bool
    momentum: float | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    track_running_stats: bool
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    eps: float

    def forward(self, input: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        """Normalise by the statistics of all ranks in training mode, else as the plain module does.

        Raises:
            ValueError: on every rank, if all ranks together hold only one value per channel.
        """
        if not self.training or self.ranks.size == 1:
            plain: Tensor = super().forward(input)
            return plain
        self._check_input_dim(input)  # type: ignore[operator]
        share = 0.0 if self.momentum is None else self.momentum
        running: tuple[Tensor, Tensor] | None = None
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            running = self.running_mean, self.running_var
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1.0 / float(self.num_batches_tracked)
        normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, running, share, self.eps, self.ranks
        )
        return normalised


class SynchronisedBatchNorm1d(SynchronisedBatchNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """`nn.BatchNorm1d` over the samples of all ranks."""

    PLAIN = nn.BatchNorm1d


class SynchronisedBatchNorm2d(SynchronisedBatchNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """`nn.BatchNorm2d` over the samples of all ranks."""

    PLAIN = nn.BatchNorm2d


class SynchronisedBatchNorm3d(SynchronisedBatchNorm, nn.BatchNorm3d):  # type: ignore[misc]
    """`nn.BatchNorm3d` over the samples of all ranks."""

    PLAIN = nn.BatchNorm3d


TWINS: dict[type[nn.Module], type[SynchronisedBatchNorm]] = {
    twin.PLAIN: twin
    for twin in (SynchronisedBatchNorm1d, SynchronisedBatchNorm2d, SynchronisedBatchNorm3d)
}


def synchronise_batch_norm(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Let a model's batch normalisations treat the samples of all ranks as one batch, in place.

    The modules keep their identity, parameters, buffers and state-dict keys; only their class
    changes. Every rank must then run the same forward and backward passes. A rank's batch may have
    any size, and may be empty. In evaluation mode, also that of a single module, and without a
    process group, the modules work as the plain ones do.

    Args:
        model: any module; subclasses of `nn.BatchNorm1d` to `nn.BatchNorm3d` are not changed.
        group: the process group; the default group if None. It may be initialised later.

    Returns:
        The same model.

    Raises:
        TypeError: if `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: a torch.nn.Module is needed")
    for module in model.modules():
        twin = TWINS.get(type(module))
        if twin is not None:
            module.__class__ = twin
        if isinstance(module, SynchronisedBatchNorm):
            module.ranks = Ranks(group)
    return model


class _Normalise(torch.autograd.Function):
    """x̂ γ + β with the mean and variance of all ranks' samples."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        share: float,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        """Normalise, and move the running statistics by the fraction `share`."""
        wide = wide_dtype(input.device)
        rows = _rows(input)
        values = rows.to(torch.promote_types(input.dtype, torch.float32))
        number, channels = values.shape
        mean = _sums(values) / max(1, number)
        squares = _sums((values - mean).square_())
        count = torch.full((1,), number, dtype=wide, device=input.device)
        sent = torch.cat([count, mean.to(wide), squares.to(wide)])
        total, mean, variance = _merged(ranks.gathered(sent), channels)
        # Read only where the total may be 1, because reading a number makes the host wait for the
        # device.
        samples = float(total) if number < 2 else number
        if samples == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, "
                f"got 1 on all ranks together, input size {tuple(input.shape)} on this one"
            )
        if running is not None and samples:
            for held, found in (
                (running[0], mean),
                (running[1], variance * (total / (total - 1))),
            ):
                held.copy_(held.to(wide) * (1 - share) + found * share)
        inverse = (variance + eps).rsqrt().to(values.dtype)
        mean = mean.to(values.dtype)
        ctx.save_for_backward(input, weight, mean, inverse, total.to(values.dtype))
        ctx.ranks, ctx.biased = ranks, bias is not None
        scale = inverse if weight is None else inverse * weight.to(values.dtype)
        offset = torch.zeros_like(mean) if bias is None else bias.to(values.dtype)
        return _unrolled(torch.addcmul(offset, values - mean, scale), input).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the input, through all ranks' statistics; local gradients of γ and β."""
        input, weight, mean, inverse, total = ctx.saved_tensors
        centred = _rows(input).to(mean.dtype) - mean
        rows = _rows(gradient).to(mean.dtype)
        sums = torch.stack([_sums(rows), _sums(rows * centred) * inverse])
        of_weight = of_bias = of_input = None
        if weight is not None:
            of_weight = sums[1].to(weight.dtype)
        if ctx.biased:
            of_bias = sums[0].to(mean.dtype if weight is None else weight.dtype)
        if ctx.needs_input_grad[0]:
            offset, slope = ctx.ranks.sum_(sums.clone()) / total.clamp(min=1)
            scale = inverse if weight is None else inverse * weight.to(mean.dtype)
            of_rows = torch.addcmul(-scale * offset, rows, scale)
            of_rows.addcmul_(centred, -scale * slope * inverse)
            of_input = _unrolled(of_rows, input).to(input.dtype)
        return of_input, of_weight, of_bias, None, None, None, None


def _merged(parts: Float[Tensor, "ranks sent"], channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count `[1]`, mean and biased variance `[channels]` of all samples, merged by rank order."""
    total = parts.new_zeros(1)
    mean, squares = parts.new_zeros(channels), parts.new_zeros(channels)
    for part in parts:
        total = total + part[:1]
        mean = mean + part[:1] * part[1 : 1 + channels]
    total_or_one = total.clamp(min=1)
    mean = mean / total_or_one
    for part in parts:
        shift = part[1 : 1 + channels] - mean
        squares = squares + part[1 + channels :] + part[:1] * shift.square()
    return total, mean, squares / total_or_one


def _rows(input: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "samples channels"]:
    """Turn every sample into a row; a view if the memory format is channels last."""
    return input.detach().movedim(1, -1).reshape(-1, input.shape[1])


def _unrolled(rows: Float[Tensor, "samples channels"], like: Tensor) -> Tensor:
    """Undo `_rows`: give rows the shape of `like`."""
    return rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)


def _sums(rows: Float[Tensor, "samples channels"]) -> Float[Tensor, " channels"]:
    """Sums over samples; on a CPU as a matrix product, which is faster, if it is not rounded."""
    if rows.device.type != "cpu" or product_dtype(rows.dtype, rows.device) != rows.dtype:
        return rows.sum(0)
    return (rows.new_ones(1, len(rows)) @ rows)[0]
