"""transformers' `Conv1D`, a dense layer whose weight is `[in, out]`, as in GPT-2."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn

import prong

pytest.importorskip("transformers")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
MODES = ["fold", "activations", "preconditioned"]


def conv1d(outputs, inputs):
    layer = Conv1D(outputs, inputs).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def data(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [(3,), (2, 2), (40,), (5, 4)])
@pytest.mark.parametrize("leading", [None, 0.3])
def test_a_step_of_sgd_is_the_closed_form(mode, rows, leading):
    # ΔW = −η (g_W − g_b cᵀ) P and Δb = −η g_b − ΔW c, in the layout of nn.Linear.
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(conv1d(6, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {**EXACT, "mode": mode, "step_limit": None, "leading": leading}
    natural = reparametrizer(model, optimizer, **options)
    scales = torch.tensor([3.0, 1.0, 0.05, 0.01], dtype=torch.float64)
    seen = data(64, 4, seed=1) @ data(4, 4, seed=2) * scales + 1
    natural.initialize([seen], "preserve")
    layer = model[0]
    assert layer.centred
    assert (layer.mean[0] - seen.mean(0)).abs().max() < 1e-12
    if mode == "preconditioned":
        precision = layer.preconditioner.whole()[0]
    else:
        precision = layer.whitener[0].T @ layer.whitener[0]
    if leading is None:
        identity = torch.eye(4, dtype=torch.float64)
        damped = torch.cov(seen.T, correction=0) + EXACT["damping"] * identity
        assert (precision @ damped - identity).abs().max() < 1e-9
    plain = prong.fold(model)
    x = data(*rows, 4, seed=3)
    plain(x).square().sum().backward()
    g_weight, g_bias = plain[0].weight.grad.T, plain[0].bias.grad
    model(x).square().sum().backward()
    optimizer.step()
    moved = prong.fold(model)[0]
    step = -0.1 * (g_weight - torch.outer(g_bias, layer.mean[0])) @ precision
    shift = -0.1 * g_bias - step @ layer.mean[0]
    scale = step.abs().max()
    assert (moved.weight - plain[0].weight - step.T).abs().max() / scale < 1e-9
    assert (moved.bias - plain[0].bias - shift).abs().max() / scale < 1e-9


class Transposed(nn.Module):
    """The same network of nn.Linear or of Conv1D, from the same numbers."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x).tanh())


def pair():
    torch.manual_seed(0)
    ours = Transposed(conv1d(9, 5), conv1d(3, 9))
    other = Transposed(nn.Linear(5, 9).double(), nn.Linear(9, 3).double())
    with torch.no_grad():
        for mine, theirs in ((ours.first, other.first), (ours.second, other.second)):
            theirs.weight.copy_(mine.weight.T)
            theirs.bias.copy_(mine.bias)
    return ours, other


OPTIONS = {
    "fold": {"mode": "fold"},
    "activations": {"mode": "activations"},
    "preconditioned": {"mode": "preconditioned"},
    "leading": {"mode": "preconditioned", "leading": 0.3},
    "reset": {"momentum": "reset"},
    "two-sided": {"two_sided": prong.TwoSided()},
    "diagonal": {"batch_diagonal": True},
    "positions": {"positions": 1},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(4,), (32,), (3, 7)])
@pytest.mark.parametrize("init", ["balanced", "whitened", "preserve"])
def test_it_is_trained_as_nn_linear_is(options, shape, init):
    results = []
    for model in pair():
        prong.whiten(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        natural = reparametrizer(
            model, optimizer, **{**EXACT, "period": 3, "samples": 24, **OPTIONS[options]}
        )
        natural.initialize([data(32, 5, seed=9) + 2], init)
        for step in range(7):
            x = 2 * data(*shape, 5, seed=step) + 1
            (model(x) - x.sum(-1, keepdim=True)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            natural.step()
            if step == 4 and options in MODES:
                natural.convert(MODES[MODES.index(options) - 1])
        assert natural.report.layers["first"].updated
        results.append((prong.fold(model), natural))
    (ours, mine), (other, theirs) = results
    assert type(ours.first) is Conv1D
    assert (ours.first.weight.T - other.first.weight).abs().max() < 1e-9
    assert (ours.second.weight.T - other.second.weight).abs().max() < 1e-9
    assert (ours.first.bias - other.first.bias).abs().max() < 1e-9
    for name, scale in theirs.control.scales.items():
        assert (mine.control.scales[name] - scale).abs() < 1e-9


def test_second_derivatives_are_those_of_the_generic_way():
    for rows in (2, 20):
        grads = []
        for model in pair():
            prong.whiten(model)
            natural = reparametrizer(
                model,
                torch.optim.SGD(model.parameters(), lr=0.1),
                **{**EXACT, "mode": "preconditioned"},
            )
            natural.initialize([data(32, 5)], "preserve")
            x = data(rows, 5, seed=1).requires_grad_()
            (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
            slope.square().sum().backward()
            grads.append(model.first.weight.grad)
        assert (grads[0].T - grads[1]).abs().max() < 1e-9


def test_the_norm_of_the_last_pass_is_used():
    model, _ = pair()
    prong.whiten(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = reparametrizer(model, optimizer, **{**EXACT, "mode": "preconditioned"})
    natural.initialize([data(32, 5)], "preserve")
    model(data(4, 5)).sum().backward()
    for layer in (model.first, model.second):
        assert layer.last_pass.take(layer.weight.grad) is not None


def test_compression_of_one_is_that_of_nn_linear():
    x = data(60, 5) @ torch.diag(torch.tensor([3.0, 1, 1e-3, 1e-3, 1e-3]).double())
    outputs = []
    for model in pair():
        compressed, reports = prong.compress(prong.whiten(model), [x], tolerance=0.01)
        assert reports[0].split
        assert type(compressed.first) is nn.Sequential
        outputs.append(compressed(x))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-9


def test_copies_and_stored_models_have_the_twin():
    model = prong.whiten(nn.Sequential(conv1d(6, 4)))
    natural = reparametrizer(model, torch.optim.SGD(model.parameters(), lr=0.1), **EXACT)
    x = data(16, 4)
    natural.initialize([x], "preserve")
    assert type(copy.deepcopy(model)[0]) is type(model[0])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded[0]) is type(model[0])
    assert torch.equal(loaded(x), model(x))
    assert type(prong.fold(loaded)[0]) is Conv1D


def test_a_process_that_never_met_one_can_load_it(tmp_path):
    model, x = prong.whiten(nn.Sequential(conv1d(6, 4))), data(3, 4)
    torch.save((model, x, model(x)), tmp_path / "model.pt")
    code = (
        "import sys, torch, prong; assert 'transformers' not in sys.modules; "
        f"model, x, y = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False); "
        "assert torch.equal(model(x), y) and isinstance(model[0], prong.Whitened); "
        "assert type(prong.fold(model)[0]).__name__ == 'Conv1D'; print('well')"
    )
    root = str(Path(prong.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.strip() == "well", done.stderr


def test_another_class_of_that_name_and_subclasses_stay_plain():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))

    class Special(type(conv1d(2, 2))):
        pass

    model = nn.ModuleList([Conv1D(), Special(2, 2), conv1d(2, 2)])
    reasons = [each.reason for each in prong.coverage(prong.whiten(model, include="*"))]
    assert "not a dense or convolutional layer" in reasons[0]
    assert "subclass" in reasons[1]
    assert reasons[2] == ""


def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, bos_token_id=1, eos_token_id=None,
        n_positions=8, n_embd=12, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).double()


@pytest.mark.parametrize("mode", MODES)
def test_gpt2_is_whitened_trained_checked_and_folded(mode):
    model = gpt2()
    keys = list(model.state_dict())
    tokens = torch.randint(0, 11, (16, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "labels": tokens}
    before = model(**batch).logits
    prong.whiten(model)
    whitened = [each for each in prong.coverage(model) if each.whitened]
    assert [each.kind for each in whitened] == ["WhitenedConv1D"] * 8
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    natural = reparametrizer(
        model, optimizer, **{**EXACT, "mode": mode, "period": 5, "samples": 32}
    )
    natural.initialize([batch], "preserve")
    assert (model(**batch).logits - before).abs().max() < 1e-10
    losses = []
    for _ in range(12):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        natural.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(natural.report.layers) == 8
    assert all(each.updated for each in natural.report.layers.values())
    result = prong.check(model, batch)
    assert result.ok, str(result)
    plain = prong.fold(model).eval()
    assert list(plain.state_dict()) == keys
    assert (plain(**batch).logits - model.eval()(**batch).logits).abs().max() < 1e-10
    assert plain.generate(tokens[:1, :3], max_new_tokens=3, do_sample=False).shape == (1, 6)
