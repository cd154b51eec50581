"""Backward passes of preconditioned layers: W and d are parameters, `.grad` is natural.

If V and U are eliminated from a step of SGD on (V, d), then with P = UᵀU = (Σ + εI)⁻¹

    ΔW = −η (g_W − g_b cᵀ) P,   Δd = −η g_b     for   y = W (h − c) + d.

A layer can therefore hold W and d, and its backward pass can return (g_W − g_b cᵀ) P as the
gradient of W. It then follows the same path under every optimizer that is linear in the gradient:
SGD, with or without momentum, Nesterov's momentum, and weight decay, which acts on V as on W. The
layer never forms V and does not fold in the forward pass, and a new P does not change its function.

g_W − g_b cᵀ is gᵀ(h − c). If the batch has fewer rows (B) than the layer has outputs (M), the
inputs are multiplied by P, gᵀ ((h − c) P), which costs B N² multiply-adds instead of M N².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.preconditioner import inner, times

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class GradientFactors:
    """‖g_V‖² of the last backward pass through a preconditioned layer, where it is cheap.

    With n = g_V U the natural gradient, ‖g_V‖² = ⟨n P⁻¹, n⟩. After the pass this costs M N²
    multiply-adds, or M N k with k leading directions. During the pass it is ⟨gᵀ(h − c), n⟩. Where
    gᵀ(h − c) is not formed, it costs B M k with leading directions (see `scale`), and B² (M + N)
    with a whole P, as Σ (r rᵀ) ∘ (X P Xᵀ).

    This norm belongs only to the gradient of this pass, and only if that was not changed since. The
    check compares the gradient's address, its version and a few of its numbers. The memory is kept,
    so no other tensor can have the same address. On a GPU the numbers are not read, because the
    host would wait. There the square is multiplied by the change of ‖n‖², because `GradScaler`
    unscales gradients without changing their version.
    """

    def __init__(self) -> None:
        """Start without a stored norm."""
        self._square: Tensor | None = None
        self._memory: torch.UntypedStorage | None = None
        self._place = (0, 0)
        self._some: Tensor | None = None
        self._scale: tuple[Tensor, int, Tensor] | None = None

    def scale(
        self, preconditioner: Float[Tensor, "1 in k"], damping: Float[Tensor, " 1"]
    ) -> Float[Tensor, " k"]:
        """√((1 − s)/ε) of leading directions, with s the diagonal of Fᵀ F.

        With a = X F, ⟨n P⁻¹, n⟩ = ε ‖n‖² + ‖rᵀ (a √((1 − s)/ε))‖². The result is cached for each P.
        """
        held = self._scale
        # Compare by identity: a new tensor may have the address of one that was freed.
        if held is None or held[0] is not preconditioner or held[1] != preconditioner._version:
            rest = 1 - preconditioner[0].square().sum(0)
            held = (preconditioner, preconditioner._version, (rest / damping).clamp(min=0).sqrt())
            self._scale = held
        return held[2]

    def keep(self, natural: Tensor, square: Tensor) -> None:
        """Store ‖g_V‖², a scalar, of the pass that returned the gradient `natural`."""
        self._square, self._memory = square, natural.untyped_storage()
        self._place = (natural.data_ptr(), natural._version)
        self._some = inner(natural, natural) if natural.is_cuda else self._sample(natural).clone()

    def take(self, natural: Tensor) -> Tensor | None:
        """Return the stored ‖g_V‖² once, if `natural` is the unchanged gradient of that pass."""
        square, some = self._square, self._some
        self._square = self._memory = self._some = None
        if square is None or not natural.is_contiguous():
            return None
        if self._place != (natural.data_ptr(), natural._version):
            return None
        assert some is not None
        if natural.is_cuda:
            change = inner(natural, natural) / some
            return square * torch.where(some > 0, change, 1)
        return square if torch.equal(some, self._sample(natural)) else None

    def __getstate__(self) -> dict[str, object]:
        """Copy and store without the norm, because a copied gradient has another address."""
        return GradientFactors().__dict__

    @staticmethod
    def _sample(natural: Tensor) -> Tensor:
        flat = natural.reshape(-1)
        return flat[:: max(1, len(flat) // 61)]


class NaturalGradient(torch.autograd.Function):
    """(W, d) → (W, d − Σ_taps W c), with natural gradients in the backward pass.

    It is applied to the parameters before the plain operation, so it works for every type of layer
    and can be differentiated twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Float[Tensor, ...],
        bias: Float[Tensor, " out"] | None,
        mean: Float[Tensor, "groups in"],
        preconditioner: Float[Tensor, "groups in columns"],
        damping: Float[Tensor, " groups"] | None,
        transposed: bool,
        last: GradientFactors | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weight and the bias (None without one) of the plain layer."""
        ctx.save_for_backward(mean, preconditioner, damping)
        ctx.transposed, ctx.last = transposed, last
        return weight.view_as(weight), plain_bias(weight, bias, mean, transposed)

    @staticmethod
    def backward(
        ctx: Any, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None, None, None, None, None]:
        """Return the natural gradient of W and the gradient of d."""
        mean, preconditioner, damping = ctx.saved_tensors
        groups = len(mean)
        grouped = to_grouped(weight.to(preconditioner.dtype), groups, ctx.transposed)
        outer = None
        if bias is not None:
            outer = bias.to(preconditioner.dtype).reshape(groups, -1)
        centred = grouped
        if outer is not None:
            centred = grouped - outer[:, :, None, None] * mean[:, None, None, :]
        natural = times(centred.flatten(1, 2), preconditioner, damping).reshape(centred.shape)
        plain = from_grouped(natural, weight.shape, ctx.transposed).to(weight.dtype)
        plain = plain.contiguous()
        if ctx.last is not None and not torch.is_grad_enabled():
            ctx.last.keep(plain, inner(centred, natural))
        return plain, bias, None, None, None, None, None


class NaturalLinear(torch.autograd.Function):
    """y = W (h − c) + d for a batch with fewer rows than outputs: P multiplies the inputs.

    A weight that is stored as `[in, out]` is transposed here, and its gradient has its layout.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Float[Tensor, "*batch in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        mean: Float[Tensor, "1 in"],
        preconditioner: Float[Tensor, "1 in columns"],
        damping: Float[Tensor, " 1"] | None,
        last: GradientFactors | None,
        transposed: bool = False,
    ) -> Float[Tensor, "*batch out"]:
        """Return the dense layer's output; the backward pass stores its norm in `last`."""
        ctx.last, ctx.transposed = last, transposed
        ctx.biased = bias is not None
        # With fewer rows than outputs, h − c needs less memory traffic than W c.
        centred = input if bias is None else input - mean[0].to(input.dtype)
        ctx.save_for_backward(centred, weight, mean, preconditioner, damping)
        return F.linear(centred, weight.T if transposed else weight, bias)

    @staticmethod
    def backward(
        ctx: Any, gradient: Float[Tensor, "*batch out"]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None, None]:
        """Return the gradients of the input and of d, and the natural gradient of W."""
        centred, weight, mean, preconditioner, damping = ctx.saved_tensors
        of_input = natural = of_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])

        def of_weight(inputs: Tensor) -> Tensor:
            return inputs.T @ rows if ctx.transposed else rows.T @ inputs

        if ctx.needs_input_grad[0]:
            passed = weight
            if torch.is_grad_enabled():
                # The second derivative with respect to W through this product is natural too.
                passed, _ = NaturalGradient.apply(
                    weight, None, mean, preconditioner, damping, ctx.transposed
                )  # type: ignore[no-untyped-call]
            of_input = gradient @ (passed.T if ctx.transposed else passed)
        if ctx.needs_input_grad[1]:
            flat = centred.reshape(1, -1, centred.shape[-1])
            if ctx.last is None or torch.is_grad_enabled():
                natural = of_weight(times(flat, preconditioner, damping)[0])
            elif damping is None:
                left = flat @ preconditioner
                natural = of_weight(left[0])
                batch, (out, features) = len(rows), natural.shape
                if batch * (out + features) < out * features:
                    ctx.last.keep(natural, inner(rows @ rows.T, flat[0] @ left[0].T))
                else:
                    ctx.last.keep(natural, inner(of_weight(flat[0]), natural))
            else:
                projected = flat @ preconditioner
                left = torch.baddbmm(flat, projected, preconditioner.transpose(1, 2), alpha=-1)
                natural = of_weight(left[0].div_(damping))
                columns = rows.T @ (projected[0] * ctx.last.scale(preconditioner, damping))
                square = damping[0] * inner(natural, natural) + inner(columns, columns)
                ctx.last.keep(natural, square)
        if ctx.biased and ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_input, natural, of_bias, None, None, None, None, None


class GradientObserver(Protocol):
    """A layer that gathers statistics of its output's gradient, for two-sided whitening."""

    def observe_gradient(self, gradient: Tensor) -> None:
        """Add the gradient to the statistics."""


class ObserveGradient(torch.autograd.Function):
    """The identity; in the backward pass the layer gathers statistics of the gradient.

    Under activation checkpointing the backward pass still runs only once, so nothing is counted
    twice.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, layer: GradientObserver) -> Tensor:
        """Return the output."""
        ctx.layer = layer
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Let the layer observe the gradient, and return it."""
        ctx.layer.observe_gradient(gradient)
        return gradient, None


def plain_bias(
    weight: Float[Tensor, ...],
    bias: Float[Tensor, " out"] | None,
    mean: Float[Tensor, "groups in"],
    transposed: bool,
) -> Float[Tensor, " out"] | None:
    """Return the plain layer's bias, d − Σ_taps W c."""
    if bias is None:
        return None
    if weight.dim() == 2:
        # A sum over one tap would copy W.
        rows = weight.T if transposed else weight
        return (bias.to(mean.dtype) - rows.to(mean.dtype) @ mean[0]).to(bias.dtype)
    grouped = to_grouped(weight.to(mean.dtype), len(mean), transposed)
    shift = (grouped.sum(2) @ mean.unsqueeze(-1)).reshape(-1)
    return (bias.to(mean.dtype) - shift).to(bias.dtype)
