"""The path of SGD in whitened coordinates is the closed form, whatever the root."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from exact import EXACT, reparametrizer
from reference import ReferenceNetwork, ReferencePRONG
from small_runs import train_step
from torch import nn

import prong

SIZES = (6, 9, 7, 4)
BATCH, STEPS, PERIOD, SAMPLES = 12, 50, 7, 30  # ⌈30/12⌉ = 3 batches behind every estimate


def network(seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(SIZES):
        linear = nn.Linear(a, b, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(
                torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5
            )
            linear.bias.copy_(torch.randn(b, generator=generator, dtype=torch.float64) / 3)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def batches(steps=STEPS, seed=1):
    """Inputs with a mean far from zero and a covariance far from the identity."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(SIZES[0], SIZES[0]))
    for _ in range(steps):
        yield rng.normal(size=(BATCH, SIZES[0])) @ mix + 2.0, rng.integers(0, SIZES[-1], BATCH)


def arrays(model):
    linears = [m for m in model if isinstance(m, nn.Linear)]
    return [m.weight.detach().numpy() for m in linears], [m.bias.detach().numpy() for m in linears]


MODES = ["fold", "activations", "preconditioned"]


@functools.cache
def run(root, rule, *, limit=None, lr=0.05, momentum=0.9, mode="fold", narrow=False, **options):
    """Canonical parameters after every step; each path is taken once."""
    model = prong.whiten(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, **options)
    wanted = {"damping": 0.05, "root": root, "momentum": rule, "step_limit": limit, "mode": mode}
    natural = reparametrizer(
        model, optimizer, period=PERIOD, samples=SAMPLES, **{**EXACT, **wanted}
    )
    path = []
    for x, labels in batches():
        inputs, wanted = torch.tensor(x), torch.tensor(labels)
        # Micro-batches of fewer rows than any layer has outputs, or the whole batch at once.
        parts = 4 if narrow else 1
        train_step(model, optimizer, natural, inputs, wanted, parts)
        path.append([np.concatenate([p.ravel() for p in ps]) for ps in arrays(prong.fold(model))])
    assert natural.report is not None
    assert natural.report.layers["0"].samples == 3 * BATCH
    return np.array([np.concatenate(step) for step in path])


@functools.cache
def reference(rule, limit=None, lr=0.05):
    weights, biases = arrays(network())
    frozen = ReferencePRONG(
        ReferenceNetwork(weights, biases),
        lr=lr,
        momentum=0.9,
        damping=0.05,
        period=PERIOD,
        window=3,
        rule=rule,
        limit=limit,
    )
    path = []
    for x, labels in batches():
        frozen.step(x, labels)
        path.append(
            np.concatenate([p.ravel() for p in [*frozen.network.weights, *frozen.network.biases]])
        )
    return np.array(path)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rule", ["gradient", "reset"])
@pytest.mark.parametrize("mode", ["activations", "preconditioned"])
def test_every_mode_takes_the_same_path(mode, rule, nesterov, narrow):
    options = {"nesterov": nesterov, "narrow": narrow, "weight_decay": 0.01}
    path = run("cholesky", rule, mode=mode, **options)
    assert relative(path, run("cholesky", rule, **options)) < 1e-10
    if not nesterov:
        plain = run("cholesky", rule, mode=mode, narrow=narrow)
        assert relative(plain, reference(rule)) < 1e-10


@pytest.mark.parametrize("rule", ["gradient", "reset"])
@pytest.mark.parametrize("root", ["pca", "zca", "cholesky", "newton-schulz"])
def test_fifty_steps_with_momentum_equal_the_closed_form(root, rule):
    # Seven reparametrisations lie on the way: the state must have followed the basis each time.
    assert relative(run(root, rule), reference(rule)) < 1e-10


def test_the_two_momentum_rules_are_two_paths():
    assert relative(reference("gradient"), reference("reset")) > 1e-3


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("limit", [0.003, 0.02])
@pytest.mark.parametrize("mode", MODES)
def test_step_control_equals_the_closed_form(mode, limit, narrow):
    limited = reference("gradient", limit=limit, lr=0.2)
    path = run("cholesky", "gradient", limit=limit, lr=0.2, mode=mode, narrow=narrow)
    assert relative(path, limited) < 1e-10
    assert relative(reference("gradient", lr=0.2), limited) > 1e-2


def test_pca_zca_and_cholesky_give_the_same_path():
    paths = [run(root, "gradient", nesterov=True) for root in ("pca", "zca", "cholesky")]
    assert relative(paths[1], paths[0]) < 1e-10
    assert relative(paths[2], paths[0]) < 1e-10


def test_decay_of_v_is_decay_of_w():
    # SGD's weight_decay without momentum is decoupled: V shrinks by 1 − ηλ, and W = V U with it.
    model = prong.whiten(network())
    data = torch.randn(40, SIZES[0], dtype=torch.float64) @ torch.randn(
        SIZES[0], SIZES[0], dtype=torch.float64
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    natural = reparametrizer(model, optimizer, step_limit=None, **EXACT)
    natural.initialize([data], "preserve")
    before = arrays(prong.fold(model))[0]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, arrays(prong.fold(model))[0], strict=True):
        np.testing.assert_allclose(new, (1 - 0.1 * 0.5) * old, atol=1e-13)


def step_of_one_layer(bias, root):
    torch.manual_seed(3)
    layer = nn.Linear(5, 3, bias=bias, dtype=torch.float64)
    data = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1.0
    target = torch.randn(200, 3, dtype=torch.float64)
    plain = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    model = prong.whiten(nn.Sequential(layer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = {"damping": 0.3, "root": root, "step_limit": None, "positions": None}
    natural = reparametrizer(model, optimizer, samples=200, **{**EXACT, **wanted})
    natural.initialize([data], "preserve")
    dual = model[0].weight.detach().clone()
    (model(data) - target).square().sum(1).mean().backward()
    (nn.functional.linear(data, *plain) - target).square().sum(1).mean().backward()
    optimizer.step()
    return prong.fold(model)[0], plain, data, dual


@pytest.mark.parametrize("root", ["pca", "zca", "cholesky"])
def test_mirror_descent_gives_the_same_step_in_theta(root):
    # Eqs. 8 and 9 with ψ(θ) = ½ θᵀFθ; F's input factor is E[ĥĥᵀ] with the constant 1 for the bias.
    plain_after, (weight, bias), data, _ = step_of_one_layer(True, root)
    theta = torch.cat([weight, bias[:, None]], 1).detach()
    gradient = torch.cat([weight.grad, bias.grad[:, None]], 1)
    extended = torch.cat([data, torch.ones(len(data), 1, dtype=torch.float64)], 1)
    fisher = extended.T @ extended / len(data)
    fisher[:5, :5] += 0.3 * torch.eye(5, dtype=torch.float64)
    omega = theta @ fisher - 0.1 * gradient
    after = omega @ torch.linalg.inv(fisher)
    assert (plain_after.weight - after[:, :5]).abs().max() < 1e-10
    assert (plain_after.bias - after[:, 5]).abs().max() < 1e-10


def test_mirror_descent_in_the_root_of_the_fisher():
    # Eq. 10: Ω = F^½ θ literally, which holds for ZCA without a mean.
    plain_after, (weight,), data, dual = step_of_one_layer(False, "zca")
    fisher = data.T @ data / len(data) + 0.3 * torch.eye(5, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(fisher)
    root = vectors * values.sqrt() @ vectors.T
    inverse = vectors / values.sqrt() @ vectors.T
    omega = weight.detach() @ root
    assert (dual - omega).abs().max() < 1e-10
    after = (omega - 0.1 * weight.grad @ inverse) @ inverse
    assert (plain_after.weight - after).abs().max() < 1e-10


def mirror_path(form):
    """θ after every step of mirror descent; F's input factor is re-estimated as PRONG does."""
    weights, biases = arrays(network())
    plain = ReferenceNetwork(weights, biases)
    metrics = [np.eye(w.shape[1] + 1) for w in plain.weights]
    seen = [[] for _ in plain.weights]
    path = []
    for step, (x, labels) in enumerate(batches(), start=1):
        gradients, inputs = plain.gradients(x, labels)
        for i, (g_weight, g_bias) in enumerate(gradients):
            theta = np.concatenate([plain.weights[i], plain.biases[i][:, None]], 1)
            gradient = np.concatenate([g_weight, g_bias[:, None]], 1)
            if form == "Eqs. 8 and 9":
                theta = (theta @ metrics[i] - 0.05 * gradient) @ np.linalg.inv(metrics[i])
            else:
                values, vectors = np.linalg.eigh(metrics[i])
                root = vectors * np.sqrt(values) @ vectors.T
                inverse = vectors / np.sqrt(values) @ vectors.T
                theta = (theta @ root - 0.05 * gradient @ inverse) @ inverse
            plain.weights[i], plain.biases[i] = theta[:, :-1], theta[:, -1]
            seen[i].append(inputs[i])
        if step % PERIOD == 0:
            for i, gathered in enumerate(seen):
                h = np.concatenate(gathered[-3:])
                extended = np.concatenate([h, np.ones((len(h), 1))], 1)
                metrics[i] = extended.T @ extended / len(h)
                metrics[i][:-1, :-1] += 0.05 * np.eye(h.shape[1])
                gathered.clear()
        path.append(np.concatenate([p.ravel() for p in [*plain.weights, *plain.biases]]))
    return np.array(path)


@pytest.mark.parametrize("form", ["Eqs. 8 and 9", "Eq. 10"])
def test_mirror_descent_gives_the_same_path_in_theta(form):
    # E[ĥĥᵀ] with the constant 1 has Σ + ccᵀ, c and 1 as its blocks: centring is inside it.
    assert relative(run("zca", "gradient", momentum=0.0), mirror_path(form)) < 1e-10
