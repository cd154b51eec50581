"""A small network under step control, and by hand the lengths that it should give its steps."""

from __future__ import annotations

import torch
from exact import EXACT, reparametrizer
from small_runs import WIDE, dense, train_step
from torch import nn

import prong

MODES = ["fold", "activations", "preconditioned"]
LIMIT, BATCH = 0.003, 16


def network(dtype=WIDE):
    return dense((6, 9, 7, 4), dtype)


def batch(step, size=BATCH, dtype=WIDE):
    generator = torch.Generator().manual_seed(1000 + step)
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(7), dtype=WIDE)
    x = torch.randn(size, 6, generator=generator, dtype=WIDE) @ mix + 2.0
    return x.to(dtype), torch.randint(0, 4, (size,), generator=generator)


def loss(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def start(mode="fold", *, lr=0.1, bias_lr=None, dtype=WIDE, **options):
    model = prong.whiten(network(dtype))
    groups = [{"params": list(model.parameters()), "lr": lr}]
    if bias_lr is not None:
        layers = [model[0], model[2], model[4]]
        groups = [
            {"params": [layer.weight for layer in layers], "lr": lr},
            {"params": [layer.bias for layer in layers], "lr": bias_lr},
        ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    options = {**EXACT, "damping": 0.05, "period": 5, "samples": 32, "mode": mode, **options}
    return model, optimizer, reparametrizer(model, optimizer, **options)


def train(model, optimizer, natural, first, last, pieces=1, dtype=WIDE):
    """The scales of every step."""
    scales = []
    for index in range(first, last):
        train_step(model, optimizer, natural, *batch(index, dtype=dtype), pieces)
        scales.append({name: float(scale) for name, scale in natural.control.scales.items()})
    return scales


def rows_of(layer, tensor):
    """A weight, or its gradient, as rows of P's features, `[groups, rows, in]`."""
    groups = getattr(layer, "groups", 1)
    if tensor.dim() == 2:
        return tensor.unsqueeze(0)
    if "Transpose" in type(layer).__name__:
        # [in, out/groups, *taps]
        parts = tensor.reshape(groups, -1, tensor.shape[1], tensor[0, 0].numel())
        return parts.permute(0, 2, 3, 1).flatten(1, 2)
    # [out, in/groups, *taps]
    parts = tensor.reshape(groups, -1, tensor.shape[1], tensor[0, 0].numel())
    return parts.movedim(2, 3).flatten(1, 2)


def square_in_v(layer, tensor):
    """‖V‖² of W, or ‖g_V‖² of the natural gradient; of V or g_V itself where those are held."""
    rows = rows_of(layer, tensor.detach().double())
    if not layer.preconditioned:
        return float(rows.square().sum())
    dense = layer.preconditioner.whole().double()
    return float(((rows @ torch.linalg.inv(dense)) * rows).sum())


def outputs_of(layer):
    return layer.out_channels if hasattr(layer, "out_channels") else layer.out_features


def length(layer, rate, bias_rate=None):
    """η‖(g_V, g_d)‖ by hand."""
    square = 0.0
    if layer.weight.grad is not None:
        square += rate**2 * square_in_v(layer, layer.weight.grad)
    if layer.bias is not None and layer.bias.grad is not None:
        square += (bias_rate or rate) ** 2 * float(layer.bias.grad.double().square().sum())
    return square**0.5


def allowed(layer, limit=LIMIT, steps=0):
    """ρ_t ‖V‖ by hand."""
    least = 0.1 * outputs_of(layer) ** 0.5
    return limit / (1 + steps / 50) ** 0.5 * max(square_in_v(layer, layer.weight) ** 0.5, least)
