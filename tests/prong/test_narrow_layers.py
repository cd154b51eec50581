"""Narrow layers that are worked on together take the path of layers that run one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from exact import reparametrizer
from small_runs import assert_same_bits, folded, train_step
from torch import nn

import prong
from prong.layers.aside import MOST_ASIDE
from prong.refresh import narrow_layers as small

OPTIONS = {"period": 12, "samples": 64, "decomposition_dtype": torch.float64}


class Residual(nn.Module):
    """A layer beside a shortcut."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + torch.tanh(self.layer(x))


def network(bias=True):
    torch.manual_seed(0)
    layers = [Residual(nn.Linear(8, 8, bias=bias)) for _ in range(5)]
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3)).double()


def start(bias=True, optimizer=None, **options):
    model = prong.whiten(network(bias))
    made = (optimizer or sgd)(model)
    return model, made, reparametrizer(model, made, **{**OPTIONS, **options})


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator, dtype=torch.float64) + 0.5
    return x, torch.randint(0, 3, (16,), generator=generator)


def train(model, optimizer, natural, first, last, parts=1):
    for index in range(first, last):
        train_step(model, optimizer, natural, *batch(index), parts)


def together(natural):
    return sum(len(pack.units) for pack in natural.small.packs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("limit", [0.003, None])
def test_together_and_one_by_one_are_one_path(monkeypatch, limit, parts, bias):
    model, optimizer, natural = start(bias, step_limit=limit)
    assert together(natural) == 7
    train(model, optimizer, natural, 0, 28, parts)
    monkeypatch.setattr(small, "FEWEST", 99)
    other, its, alone = start(bias, step_limit=limit)
    assert together(alone) == 0
    train(other, its, alone, 0, 28, parts)
    assert (folded(model) - folded(other)).abs().max() < 1e-10
    for name, layer in model.named_modules():
        if isinstance(layer, prong.Whitened):
            twin = other.get_submodule(name)
            assert (layer.mean - twin.mean).abs().max() < 1e-12, name
            assert (layer.precision_matrix - twin.precision_matrix).abs().max() < 1e-9, name
    assert natural.report.layers.keys() == alone.report.layers.keys()
    for name, layer in natural.report.layers.items():
        assert layer.samples == alone.report.layers[name].samples


def test_few_wide_or_other_layers_run_by_themselves():
    for model, make in (
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.optim.SGD),
        (nn.Sequential(*[nn.Linear(65, 65) for _ in range(5)]), torch.optim.SGD),
        (nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)]), torch.optim.Adam),
    ):
        model = prong.whiten(model)
        natural = reparametrizer(model, make(model.parameters(), lr=0.1))
        assert together(natural) == 0


def test_gradients_that_are_used_twice_are_multiplied_once():
    model, optimizer, natural = start()
    train(model, optimizer, natural, 0, 20)
    x, labels = batch(99)
    nn.functional.cross_entropy(model(x), labels).backward()
    natural.control.limit = None
    optimizer.step()
    first = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for gradient, parameter in zip(first, model.parameters(), strict=True):
        assert torch.equal(gradient, parameter.grad)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_takes_natural_gradients_without_the_original(how):
    model, optimizer, natural = start(step_limit=None)
    train(model, optimizer, natural, 0, 20)
    twin = how(model)
    assert all(m.aside is None for m in twin.modules() if isinstance(m, prong.Whitened))
    x, labels = batch(99)
    for each in (model, twin):
        nn.functional.cross_entropy(each(x), labels).backward()
    natural.small.work(optimizer)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-12


def test_a_detached_model_takes_natural_gradients():
    model, optimizer, natural = start(step_limit=None)
    train(model, optimizer, natural, 0, 20)
    x, labels = batch(99)
    nn.functional.cross_entropy(model(x), labels).backward()
    natural.small.work(optimizer)
    wanted = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    natural.detach()
    nn.functional.cross_entropy(model(x), labels).backward()
    for gradient, parameter in zip(wanted, model.parameters(), strict=True):
        assert (gradient - parameter.grad).abs().max() < 1e-12


def test_a_resumed_run_is_the_same_to_the_bit():
    whole = start()
    train(*whole, 0, 30)
    begun = start()
    train(*begun, 0, 17)
    saved = copy.deepcopy([each.state_dict() for each in begun])
    resumed = start()
    for each, state in zip(resumed, saved, strict=True):
        each.load_state_dict(state)
    train(*resumed, 17, 30)
    assert_same_bits(resumed[0].state_dict(), whole[0].state_dict())


def test_layers_without_a_gradient_are_left_out():
    model, optimizer, natural = start(step_limit=None)
    train(model, optimizer, natural, 0, 20)
    frozen = model[2].layer
    before = frozen.weight.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.state.clear()
    frozen.weight.requires_grad_(False)
    train(model, optimizer, natural, 20, 40)
    assert torch.equal(frozen.weight, before)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_that_is_not_finite_is_kept_out_of_one_layer():
    model, _, natural = start()
    layer = model[1].layer
    layer(torch.full((4, 8), torch.nan, dtype=torch.float64))
    layer(torch.randn(4, 8, dtype=torch.float64))
    model[2].layer(torch.randn(4, 8, dtype=torch.float64))
    model[2].layer(torch.randn(4, 8, dtype=torch.float64))
    natural.small.settle()
    assert (float(layer.moments.rejected), float(layer.moments.count)) == (1, 4)
    other = model[2].layer.moments
    assert (float(other.rejected), float(other.count)) == (0, 8)


def test_an_input_may_be_changed_once_it_was_seen():
    model, _, natural = start()
    x = torch.randn(20, 8, dtype=torch.float64)
    wanted = x.mean(0)
    model[1].layer(x)
    x.zero_()
    natural.small.settle()
    assert (model[1].layer.moments.mean[0] - wanted).abs().max() < 1e-12


def test_many_passes_in_one_step_do_not_pile_up():
    model, _, natural = start()
    for step in range(3 * MOST_ASIDE):
        model(batch(step)[0])
    assert len(model[1].layer.aside.inputs) == MOST_ASIDE
    natural.small.settle()
    assert float(model[1].layer.moments.count) == 3 * MOST_ASIDE * 16


def test_measures_on_given_data_see_them():
    model, _, _ = start()
    found = prong.whiteness(model, [batch(0)[0], batch(1)[0]], samples=32)
    assert all(torch.isfinite(each.white_spectrum).all() for each in found.values())
