"""The exact Fisher matrix of a small network, and its Kronecker approximation (Eqs. 3 to 5).

With J the Jacobian of the outputs and H the Fisher matrix of the output distribution, Eq. 3 is
F = E_x[Jᵀ H J]: the expectation over y ~ p(y|x) is taken in closed form and not sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from prong.extensions.two_sided import LIKELIHOODS
from prong.layers.base import Whitened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Fisher:
    """A Fisher matrix over the parameters of a network.

    Attributes:
        matrix: F, `[parameters, parameters]`, in nats per squared unit of the parameters.
        slices: by parameter name, its range of rows and columns.
    """

    matrix: Float[Tensor, "parameters parameters"]
    slices: dict[str, slice]

    def block(self, *names: str) -> Float[Tensor, "some some"]:
        """Return the block of the named parameters.

        Raises:
            ValueError: if a name is unknown.
        """
        for name in names:
            if name not in self.slices:
                raise ValueError(f"names={name!r}: allowed are {', '.join(self.slices)}")
        index = torch.cat([torch.arange(*self.slices[n].indices(len(self.matrix))) for n in names])
        return self.matrix[index][:, index]

    def rank(self, tolerance: float = 1e-10) -> int:
        """Number of eigenvalues above `tolerance` times the largest."""
        values = torch.linalg.eigvalsh(self.matrix)
        return int((values > tolerance * values[-1]).sum())

    def condition_number(self, damping: float = 0.0, tolerance: float = 1e-10) -> float:
        """Largest over smallest eigenvalue of F + damping·I.

        Without damping, eigenvalues below `tolerance` times the largest are left out: they belong
        to directions that do not change the output distribution.
        """
        values = torch.linalg.eigvalsh(self.matrix)
        if damping > 0:
            return float((values[-1] + damping) / (values[0].clamp(min=0) + damping))
        seen = values[values > tolerance * values[-1]]
        return float(seen[-1] / seen[0]) if len(seen) else float("nan")


def output_fisher(
    outputs: Float[Tensor, "batch outputs"], likelihood: str
) -> Float[Tensor, "batch outputs outputs"]:
    """H, the Fisher matrix of p(y | outputs) with respect to the outputs, for each example.

    Args:
        outputs: logits ("categorical", "bernoulli") or means ("gaussian", unit variance).
        likelihood: "categorical", "bernoulli" or "gaussian".

    Raises:
        ValueError: if `likelihood` is unknown.
    """
    if likelihood == "categorical":
        p = outputs.softmax(-1)
        return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    if likelihood == "bernoulli":
        p = outputs.sigmoid()
        return torch.diag_embed(p * (1 - p))
    if likelihood == "gaussian":
        return torch.diag_embed(torch.ones_like(outputs))
    raise ValueError(f"likelihood={likelihood!r}: allowed are {', '.join(LIKELIHOODS)}")


def exact_fisher(
    model: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    likelihood: str = "categorical",
    names: Sequence[str] | None = None,
) -> Fisher:
    """Compute Eq. 3 exactly, averaged over `inputs`.

    The memory is batch × outputs × parameters numbers, so this suits networks of a few thousand
    parameters.

    Args:
        model: plain or whitened. In a whitened model the parameters are Ω, and F is F_Ω. Its
            outputs for one example must not depend on the others.
        inputs: a batch.
        likelihood: "categorical", "bernoulli" or "gaussian".
        names: parameters to include; all by default.

    Raises:
        ValueError: if a name or the likelihood is unknown, or a layer is preconditioned.
    """
    _refuse_natural_gradients(model)
    known = dict(model.named_parameters())
    chosen = list(known) if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"names={name!r}: allowed are {', '.join(known)}")
    parameters = {name: known[name].detach() for name in chosen}
    training = model.training
    model.eval()
    try:

        def single(values: dict[str, Tensor], example: Tensor) -> Tensor:
            output: Tensor = functional_call(model, values, (example.unsqueeze(0),))
            return output.flatten()

        with torch.no_grad():
            outputs = model(inputs).flatten(1)
        jacobians = vmap(jacrev(single), in_dims=(None, 0))(parameters, inputs)
    finally:
        model.train(training)
    joined = torch.cat([jacobians[name].flatten(2).detach() for name in chosen], 2)
    weighted = output_fisher(outputs, likelihood) @ joined
    matrix = torch.einsum("bop,boq->pq", joined, weighted) / len(inputs)
    slices, start = {}, 0
    for name in chosen:
        slices[name] = slice(start, start + parameters[name].numel())
        start += parameters[name].numel()
    return Fisher((matrix + matrix.T) / 2, slices)


def _refuse_natural_gradients(model: nn.Module) -> None:
    """Raise ValueError for preconditioned layers, whose gradients do not give the Jacobian."""
    for name, module in model.named_modules():
        if isinstance(module, Whitened) and module.preconditioned:
            raise ValueError(
                f"{name} runs in mode 'preconditioned', whose gradients are natural: call "
                "Reparametrizer.convert with 'fold' or 'activations' first"
            )


@dataclass(frozen=True)
class Kronecker:
    """The approximation F ≈ E[δδᵀ] ⊗ E[hhᵀ] of one layer's weight block (Eq. 5).

    Attributes:
        output: E[δδᵀ], `[out, out]`, exact over y ~ p(y|x).
        input: E[hhᵀ], `[in, in]`; of U(h − c) for a whitened layer.
        error: ‖F − approximation‖_F / ‖F‖_F.
    """

    output: Float[Tensor, "out out"]
    input: Float[Tensor, "in in"]
    error: float


def kronecker(
    model: nn.Module,
    layer: str,
    inputs: Float[Tensor, "batch ..."],
    likelihood: str = "categorical",
) -> Kronecker:
    """The Kronecker factors of a dense layer's block, and the error of their product.

    Args:
        model: a network whose `layer` has one input vector per example.
        layer: qualified name of an `nn.Linear`, plain or whitened.
        inputs: a batch.
        likelihood: see `exact_fisher`.

    Raises:
        ValueError: if `layer` names no dense layer, its input has positions, or a layer of the
            model runs preconditioned.
    """
    _refuse_natural_gradients(model)
    module = dict(model.named_modules()).get(layer)
    if not isinstance(module, nn.Linear):
        raise ValueError(f"layer={layer!r}: it must be the name of a dense layer")
    seen: dict[str, Tensor] = {}

    def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen["h"] = arguments[0].detach()

    def remember_output(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen["y"] = output.detach().requires_grad_()
        return seen["y"]

    handles = [
        module.register_forward_pre_hook(remember),
        module.register_forward_hook(remember_output),
    ]
    training = model.training
    model.eval()
    try:
        outputs = model(inputs).flatten(1)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    h = seen["h"]
    if h.dim() != 2:
        raise ValueError(f"layer={layer!r}: its input has {h.dim()} axes; it must have 2")
    columns = [
        torch.autograd.grad(outputs[:, k].sum(), seen["y"], retain_graph=True)[0]
        for k in range(outputs.shape[1])
    ]
    jacobian = torch.stack(columns, 1)
    weighted = output_fisher(outputs.detach(), likelihood) @ jacobian
    output = torch.einsum("bko,bkp->op", jacobian, weighted) / len(h)
    whitener = getattr(module, "whitener", None)
    if whitener is not None:
        h = (h - module.get_buffer("mean")[0]) @ whitener[0].T
        outer = module._buffers.get("output_whitener")
        if outer is not None:
            output = outer[0] @ output @ outer[0].T
    factor = h.T @ h / len(h)
    exact = exact_fisher(model, inputs, likelihood, [f"{layer}.weight"]).matrix
    error = torch.linalg.matrix_norm(exact - torch.kron(output, factor))
    return Kronecker(output, factor, float(error / torch.linalg.matrix_norm(exact)))
