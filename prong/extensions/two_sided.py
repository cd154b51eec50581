"""Statistics of the back-propagated δ, for two-sided whitening (footnote 4 of the paper).

W = Rᵀ V U, where R is a root of (E[δδᵀ] + γI)⁻¹ and δ is the gradient at a layer's output. With
labels drawn from the model's predictions ("sampled"), E[δδᵀ] is the second Kronecker factor of the
Fisher matrix. With the labels of the data ("empirical"), it is that of the empirical Fisher matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from prong.layers.base import Whitened

Likelihood = Literal["categorical", "bernoulli", "gaussian"]
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)


def sampled_loss(outputs: Float[Tensor, "batch *rest"], likelihood: str) -> Float[Tensor, ""]:
    """Compute −log p(y | outputs), with y drawn from the model's prediction; a batch mean.

    Args:
        outputs: logits `[batch, classes, *]` for "categorical", logits of any shape for
            "bernoulli", means of any shape for "gaussian" (unit variance).
        likelihood: "categorical", "bernoulli" or "gaussian".

    Raises:
        ValueError: if `likelihood` is unknown.
    """
    values = outputs.float() if outputs.dtype != torch.float64 else outputs
    number = max(1, values.shape[0])
    if likelihood == "categorical":
        rows = values.movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(rows.detach().softmax(-1), 1).squeeze(-1)
        return F.cross_entropy(rows, drawn, reduction="sum") / number
    if likelihood == "bernoulli":
        drawn = torch.bernoulli(values.detach().sigmoid())
        return F.binary_cross_entropy_with_logits(values, drawn, reduction="sum") / number
    if likelihood == "gaussian":
        drawn = values.detach() + torch.randn_like(values)
        return 0.5 * (values - drawn).square().sum() / number
    raise ValueError(f"likelihood={likelihood!r}: allowed are {', '.join(LIKELIHOODS)}")


def observe_sampled(
    layers: Sequence[Whitened], loss: Float[Tensor, ""], weights: Sequence[Tensor]
) -> None:
    """Gather statistics of the gradients of a sampled loss, without changing `.grad` or the graph.

    Args:
        layers: the layers that gather statistics of δ.
        loss: a result of `sampled_loss`.
        weights: parameters that the loss depends on.
    """
    for layer in layers:
        layer.gradients_wanted = True
    try:
        torch.autograd.grad(loss, list(weights), retain_graph=True, allow_unused=True)
    finally:
        for layer in layers:
            layer.gradients_wanted = False
