"""Optimizer state across a refresh: each kind by its own law, for every optimizer in the table."""

from __future__ import annotations

import warnings

import pytest
import torch
from exact import EXACT, reparametrizer
from optimizer_runs import (
    WIDE,
    every,
    network,
    only_matrices,
    problem,
    run,
    train_mode,
)
from torch import nn

import prong
from prong.refresh.optimizer_state import carry_state, held_state
from prong.refresh.state_kinds import TABLE, Kind, kinds_of


@pytest.mark.parametrize("name", TABLE)
def test_each_optimizer_keeps_the_function_and_ends_where_its_plain_version_does(name):
    if name.split(".")[0] != "torch":
        pytest.importorskip(name.split(".")[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        plain, _ = run(name, whitened=False)
        found, moved = run(name, whitened=True)
    assert moved < 1e-10
    assert found <= 1.1 * plain + 1e-3


def moving(kind):
    """A linear layer, an optimizer that holds one tensor of a kind, and a change of Φ."""
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Linear(5, 3))).to(WIDE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    natural = reparametrizer(model, optimizer, samples=64, **EXACT)
    natural.initialize([torch.randn(64, 5, dtype=WIDE) * 2 + 1], "preserve")
    unit = natural.units[0]
    old = unit.wide_phi()
    natural.initialize([torch.randn(64, 5, dtype=WIDE) @ torch.randn(5, 5, dtype=WIDE)], "preserve")
    return unit, optimizer, old, unit.wide_phi()


def carried(kind, weight, bias, monkeypatch):
    """What becomes of numbers of a kind, those of V and those of d."""
    unit, optimizer, old, new = moving(kind)
    monkeypatch.setitem(TABLE, "torch.Adam", {"held": kind})
    optimizer.state[unit.weight] = {"held": weight.clone()}
    optimizer.state[unit.biases[0]] = {"held": bias.clone()}
    carry_state([optimizer], unit, old, new, "gradient")
    found = [optimizer.state[p]["held"] for p in unit.parameters]
    return found, old, new


def coordinates(phi, weight, bias):
    """(V, d) → (W, b), written out."""
    u, c = phi.whitener[0], phi.mean[0]
    return weight @ u, bias - weight @ u @ c


def pairing(weight, bias, other, another):
    return float((weight * other).sum() + (bias * another).sum())


@pytest.mark.parametrize("kind", [Kind.VECTOR, Kind.POINT])
def test_vectors_and_points_are_the_same_weights_before_and_after(kind, monkeypatch):
    weight, bias = torch.randn(3, 5, dtype=WIDE), torch.randn(3, dtype=WIDE)
    found, old, new = carried(kind, weight, bias, monkeypatch)
    for a, b in zip(coordinates(old, weight, bias), coordinates(new, *found), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_covectors_pair_with_vectors_as_before(monkeypatch):
    vector = torch.randn(3, 5, dtype=WIDE), torch.randn(3, dtype=WIDE)
    covector = torch.randn(3, 5, dtype=WIDE), torch.randn(3, dtype=WIDE)
    before = pairing(*vector, *covector)
    moved, _, _ = carried(Kind.VECTOR, *vector, monkeypatch)
    followed, _, _ = carried(Kind.COVECTOR, *covector, monkeypatch)
    assert pairing(*moved, *followed) == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize(
    ("size", "square", "linear"),
    [
        (Kind.MAGNITUDE, Kind.SECOND_MOMENT, Kind.COVECTOR),
        (Kind.UPDATE_SIZE, Kind.UPDATE_SQUARE, Kind.VECTOR),
    ],
)
def test_squares_follow_as_the_mean_square_of_what_is_uncorrelated(
    size, square, linear, monkeypatch
):
    weight = torch.rand(3, 5, dtype=WIDE) + 0.1
    bias = torch.rand(3, dtype=WIDE) + 0.1
    # Each coordinate by itself, carried by the exact law; the squares add up.
    wanted = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for index in range(weight.numel() + bias.numel()):
        single = torch.zeros(weight.numel() + bias.numel(), dtype=WIDE)
        flat = torch.cat([weight.flatten(), bias])
        single[index] = flat[index].sqrt()
        parts = single[: weight.numel()].reshape(weight.shape), single[weight.numel() :]
        found, _, _ = carried(linear, *parts, monkeypatch)
        for total, part in zip(wanted, found, strict=True):
            total += part.square()
    squares, _, _ = carried(square, weight, bias, monkeypatch)
    sizes, _, _ = carried(size, weight.sqrt(), bias.sqrt(), monkeypatch)
    for total, found, root in zip(wanted, squares, sizes, strict=True):
        assert (found - total).abs().max() < 1e-12 * total.max()
        assert (root.square() - total).abs().max() < 1e-12 * total.max()


@pytest.mark.parametrize("name", TABLE)
def test_the_table_names_every_tensor_that_an_optimizer_holds(name):
    if name.split(".")[0] != "torch":
        pytest.importorskip(name.split(".")[0])
    model, (x, y) = network(), problem()
    optimizers = every(only_matrices(name, model))
    for each in optimizers:
        train_mode(each)
    for _ in range(3):

        def closure():
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        closure()
        for each in optimizers:
            each.step(closure) if "Closure" in type(each).__name__ else each.step()
    found = [held_state(each, p) for each in optimizers for p in model.parameters()]
    assert [lost for _, lost in found if lost] == []
    assert kinds_of(optimizers[0]) is not None
    none_held = {"pytorch_optimizer.SGD"}
    assert any(held for held, _ in found) or name in none_held


def test_lookahead_over_sgd_takes_the_path_of_its_plain_coordinates():
    """Lookahead is linear in the parameters: its path is the same in any basis."""
    module = pytest.importorskip("pytorch_optimizer")
    ends = []
    for rotating in (False, True):
        model, (x, y) = network(), problem()
        prong.whiten(model)
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer = module.Lookahead(inner, k=3)
        natural = reparametrizer(
            model, optimizer, samples=64, step_limit=None, **EXACT,
        )  # fmt: skip
        natural.initialize([x], "preserve")
        for step in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if rotating and step % 2:
                rotate(natural)
        ends.append([p.detach() for p in prong.fold(model).parameters()])
    for a, b in zip(*ends, strict=True):
        assert (a - b).abs().max() < 1e-10 * b.abs().max()


def rotate(natural):
    """Another root of the same P: an orthogonal matrix times U, and all state along with it."""
    from prong.linalg.projection import Phi

    for unit in natural.units:
        old = unit.wide_phi()
        size = old.whitener.shape[-1]
        turn = torch.linalg.qr(torch.randn(size, size, dtype=WIDE))[0]
        new = Phi(old.mean.clone(), turn @ old.whitener)
        assert unit.move(old, new)
        carry_state(natural._refresher.optimizers, unit, old, new, "gradient")


@pytest.mark.parametrize(
    "name", ["torch.Adafactor", "pytorch_optimizer.SOAP", "pytorch_optimizer.Shampoo"]
)
@pytest.mark.filterwarnings("ignore:.*was dropped, because what.*:UserWarning")
def test_what_is_not_in_the_table_keeps_the_function_and_goes_on(name):
    """State in another basis or shape is dropped whole: the optimizer starts over and trains."""
    if name.split(".")[0] != "torch":
        pytest.importorskip(name.split(".")[0])
    plain, _ = run(name, whitened=False)
    found, moved = run(name, whitened=True)
    assert moved < 1e-10
    assert found <= 1.1 * plain + 1e-3
