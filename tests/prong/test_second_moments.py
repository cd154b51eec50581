"""Second moments are carried as those of gradients whose coordinates are uncorrelated."""

from __future__ import annotations

import itertools

import pytest
import torch
from exact import EXACT, reparametrizer
from small_runs import dense, normal
from torch import nn

import prong
from prong.refresh.window import start_gathering

SQUARES = {
    "exp_avg_sq": torch.optim.Adam,
    "square_avg": torch.optim.RMSprop,
    "sum": torch.optim.Adagrad,
}
X = normal(64, 5) @ normal(5, 5, seed=1) + 1.0
# Another covariance and the same mean, so that c stays and the bias moves into no other coordinate.
OTHER = X.mean(0) + (X - X.mean(0)) @ normal(5, 5, seed=3)
Y = torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(2))


def backward(model, optimizer, x):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), Y).backward()


def phi_of(layer):
    """Copies of U and R of the layer's only group; R = I where there is none."""
    output = layer.output_whitener
    if output is None:
        output = torch.eye(layer.outputs, dtype=torch.float64).unsqueeze(0)
    return layer.whitener[0].clone(), output[0].clone()


@pytest.mark.parametrize("two_sided", [None, prong.TwoSided(normalized=False)])
@pytest.mark.parametrize("key", SQUARES)
def test_each_coordinate_follows_the_basis_by_itself(key, two_sided):
    """With a gradient in one coordinate at a time, the second moments are sums of squares."""
    model = prong.whiten(dense((5, 6, 4, 3)))
    optimizer = SQUARES[key](model.parameters(), lr=1e-3)
    options = {**EXACT, "samples": 64, "two_sided": two_sided, "period": 100}
    natural = reparametrizer(model, optimizer, **options)
    layer = model[0]
    backward(model, optimizer, X)
    assert natural.refresh().layers["0"].updated
    backward(model, optimizer, X)
    optimizer.step()
    squares, (u, r) = optimizer.state[layer.weight][key].clone(), phi_of(layer)
    start_gathering(natural._layers(), two_sided)
    backward(model, optimizer, OTHER)
    assert natural.refresh().layers["0"].updated
    new_u, new_r = phi_of(layer)
    change, outer = new_u @ torch.linalg.inv(u), new_r @ torch.linalg.inv(r)
    assert two_sided is None or (outer - torch.eye(len(outer))).abs().max() > 1e-3
    expected = torch.zeros_like(squares)
    for i, j in itertools.product(*map(range, squares.shape)):
        gradient = torch.zeros_like(squares)
        gradient[i, j] = squares[i, j].sqrt()
        expected += (outer @ gradient @ change.T).square()
    assert (optimizer.state[layer.weight][key] - expected).abs().max() < 1e-12 * expected.max()
    assert (expected - squares).abs().max() > 0.1 * squares.max()
