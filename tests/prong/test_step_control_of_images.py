"""Step control of a small network of images: loss scaling, and the bound of every layer."""

from __future__ import annotations

import pytest
import torch
from small_runs import sgd
from test_running import batch, start
from torch import nn


@pytest.mark.parametrize("mode", ["fold", "activations", "preconditioned"])
def test_loss_scaling_does_not_change_the_step_control(mode):
    # The hook runs after unscaling; a fused optimizer unscales later and says by how much.
    scales = []
    for scale in (1.0, 1024.0):
        model, optimizer, natural = start(sgd, mode=mode)
        natural.initialize([batch(99)], "whitened")
        x, y = batch(0)
        (scale * nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.grad_scale = torch.tensor(scale)
        natural.control(optimizer)
        scales.append([float(natural.control.scales[name]) for name in ("0", "4", "6")])
    assert scales[0] == pytest.approx(scales[1], rel=1e-4)
    assert max(scales[0]) < 1


def norms_of(layer):
    """‖V‖² and ‖g_V‖² + ‖g_d‖² of a layer, P taken as the matrix that it is."""
    weight, gradient = (
        tensor.detach().flatten(1).double() for tensor in (layer.weight, layer.weight.grad)
    )
    inverse = torch.eye(layer.mean.shape[1], dtype=torch.float64)
    if layer.preconditioned:
        dense = layer.preconditioner.whole()
        inverse = torch.linalg.inv(dense[0].double())
    # Taps outermost: rows of `in` numbers.
    taps = weight.shape[1] // len(inverse)
    weight, gradient = (
        rows.reshape(len(rows), len(inverse), taps).transpose(1, 2) for rows in (weight, gradient)
    )
    square = float(((gradient @ inverse) * gradient).sum()) + float(layer.bias.grad.square().sum())
    return float(((weight @ inverse) * weight).sum()), square


@pytest.mark.parametrize("options", [{}, {"leading": 0.3}])
@pytest.mark.parametrize("mode", ["fold", "activations", "preconditioned"])
def test_the_step_control_bounds_the_relative_change_of_every_layer(mode, options):
    model, optimizer, natural = start(sgd, mode=mode, **options)
    natural.initialize([batch(99)], "whitened")
    x, y = batch(0)
    (100 * nn.functional.cross_entropy(model(x), y)).backward()
    natural.control(optimizer)
    for name in ("0", "4", "6"):
        assert float(natural.control.scales[name]) < 1
        weight, gradient = norms_of(model[int(name)])
        assert 0.05 * gradient**0.5 == pytest.approx(0.003 * weight**0.5, rel=1e-4)
    natural.control.limit = 1.0
    natural.control(optimizer)
    for scale in natural.control.scales.values():
        assert float(scale) == pytest.approx(0.003**-0.7, rel=1e-4)
