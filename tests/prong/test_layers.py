"""Which layers are whitened, which are not and why, and that sharing is respected."""

from __future__ import annotations

import copy

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn
from torch.nn.utils import prune

import prong


class Branches(nn.Module):
    """User-written, nested, with a layer used twice and two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)
        self.right.weight = self.left.weight
        self.parts = nn.ModuleDict({"deep": nn.Sequential(nn.Tanh(), nn.Linear(3, 2, bias=False))})
        self.norm = nn.LayerNorm(3)

    def forward(self, x):
        hidden = self.twice(self.twice(x).tanh())
        return self.parts["deep"](self.norm(self.left(hidden) + self.right(x + 1)))


def attach(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return optimizer, reparametrizer(model, optimizer, **{**EXACT, **options})


def test_whitening_keeps_function_parameters_hooks_and_references():
    model = Branches()
    reference, x = model.left, torch.randn(5, 4)
    calls = []
    model.left.register_forward_hook(lambda *_: calls.append(1))
    before, parameters = model(x), list(model.parameters())
    assert prong.whiten(model) is model
    assert model.left is reference
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert (model(x) - before).abs().max() < 1e-6
    assert len(calls) == 2


@pytest.mark.parametrize("rule", ["gradient", "reset"])
def test_shared_weights_have_one_pooled_phi(rule):
    torch.manual_seed(0)
    model = prong.whiten(Branches().double())
    optimizer, natural = attach(model, period=2, samples=16, momentum=rule)
    for _ in range(4):
        x = 3 * torch.randn(8, 4, dtype=torch.float64) + 1
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = model.eval()(x)
        model.train()
        report = natural.step()
        assert (model.eval()(x) - before).abs().max() < 1e-12
        model.train()
    assert torch.equal(model.left.whitener, model.right.whitener)
    assert report.layers["left"].samples == 32  # two layers, two steps, eight examples
    assert report.layers["twice"].samples == 32  # one layer, called twice
    plain = prong.fold(model)
    assert plain.left.weight is plain.right.weight
    assert (plain(x) - model(x)).abs().max() < 1e-12


def test_momentum_of_a_shared_weight_follows_both_biases():
    # V collects −g_b cᵀ from both layers: m_V′ = (m_V U⁻ᵀ − (m_d + m_d₂)(c′ − c)ᵀ) U′ᵀ.
    torch.manual_seed(0)
    model = prong.whiten(Branches().double())
    optimizer, natural = attach(model, samples=16)
    x, far = torch.randn(16, 4).double(), 4 * torch.randn(16, 4).double() - 3
    natural.initialize([x], "preserve")
    model(x).square().mean().backward()
    optimizer.step()

    def momentum(parameter):
        return optimizer.state[parameter]["momentum_buffer"].clone()

    u, c = model.left.whitener[0].clone(), model.left.mean[0].clone()
    m, biases = momentum(model.left.weight), [momentum(n.bias) for n in (model.left, model.right)]
    natural.initialize([far], "preserve")
    u2, c2 = model.left.whitener[0], model.left.mean[0]
    expected = (m @ torch.linalg.inv(u).T - torch.outer(sum(biases), c2 - c)) @ u2.T
    assert (c2 - c).abs().max() > 0.1
    assert (momentum(model.left.weight) - expected).abs().max() < 1e-12
    assert torch.equal(momentum(model.right.bias), biases[1])


def test_frozen_layers_keep_their_phi():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    prong.whiten(model)
    optimizer, natural = attach(model, period=1, samples=4)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    report = natural.step()
    assert report.layers["0"].reason == "frozen"
    assert not report.layers["0"].updated
    assert report.layers["1"].updated
    assert torch.equal(model[0].whitener[0], torch.eye(3))


def test_a_frozen_bias_stays_where_it_is():
    # With c ≠ 0 the canonical bias b = d − W c would move as W moves.
    model = nn.Sequential(nn.Linear(3, 2)).double()
    model[0].bias.requires_grad_(False)
    before = model[0].bias.clone()
    prong.whiten(model)
    optimizer, natural = attach(model, period=1, samples=8)
    for _ in range(3):
        model(torch.randn(8, 3, dtype=torch.float64) + 5).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert natural.step().layers["0"].updated
    assert (prong.fold(model)[0].bias - before).abs().max() < 1e-14


@pytest.mark.filterwarnings("ignore:whitened .*Less than half:UserWarning")
def test_modules_that_cannot_be_whitened_are_named():
    model = nn.ModuleDict(
        {
            "lazy": nn.LazyLinear(3),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.utils.parametrizations.spectral_norm(nn.Conv1d(2, 2, 1)),
            "bilinear": nn.Bilinear(2, 2, 2),
            "good": nn.Linear(2, 2),
        }
    )
    reasons = {s.name: s.reason for s in prong.coverage(prong.whiten(model))}
    assert "no shape yet" in reasons["lazy"]
    assert "MultiheadAttention" in reasons["attention"]
    assert "subclass" in reasons["attention.out_proj"]
    assert "parametrization" in reasons["norm"]
    assert "Bilinear" in reasons["bilinear"]
    assert reasons["good"] == ""


def test_a_layer_that_is_never_called_keeps_its_phi_and_says_so():
    model = prong.whiten(nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)}))
    optimizer, natural = attach(model, period=1, samples=4)
    model["used"](torch.randn(4, 3)).sum().backward()
    with pytest.warns(UserWarning, match="idle saw no training pass"):
        optimizer.step()
    report = natural.step()
    assert report.layers["idle"].reason == "no finite sample was seen"
    assert report.layers["used"].updated
    assert report.kept == 1


def test_deepcopy_is_independent():
    model = prong.whiten(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    _, natural = attach(model, samples=8)
    x = torch.randn(8, 3)
    natural.initialize([x])
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin[0].whitener.mul_(2)
    assert not torch.equal(twin(x), model(x))


def test_fold_gives_plain_layers_under_the_old_names_and_leaves_the_model():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    keys = list(model.state_dict())
    prong.whiten(model, exclude=lambda n, _: n == "9")
    _, natural = attach(model, samples=8)
    natural.initialize([torch.randn(8, 1, 4, 4)])
    held = {k: v.clone() for k, v in model.state_dict().items()}
    plain = prong.fold(model)
    assert [type(m) for m in plain] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert list(plain.state_dict()) == keys
    assert all(torch.equal(v, held[k]) for k, v in model.state_dict().items())
    assert not any(k.startswith("_prong") for m in plain.modules() for k in vars(m))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "compute", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm]
)
def test_fold_copies_a_plain_layer_whose_weight_was_just_computed(compute):
    model = nn.Sequential(compute(nn.Linear(4, 4)), nn.Linear(4, 20))
    prong.whiten(model)
    x = torch.randn(8, 4)
    before = model(x)
    plain = prong.fold(model)
    assert (plain(x) - before).abs().max() < 1e-6
    plain(x).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_channels_last_stays_channels_last():
    model = prong.whiten(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double())
    optimizer, natural = attach(model, samples=8)
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    natural.initialize([x])
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    model(x).sum().backward()
    optimizer.step()
    natural.initialize([x], "preserve")
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model(x).is_contiguous(memory_format=torch.channels_last)
    assert expected.shape == model(x).shape


def test_moving_between_devices_takes_phi_along():
    model = prong.whiten(nn.Sequential(nn.Linear(3, 2)))
    model.to("meta")
    assert model[0].whitener.device.type == "meta"
    assert model[0].mean.device.type == "meta"


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_the_weight_of_a_convolution_is_in_c_order(kind, kernel, moved):
    """With strides that read as channels-last torch's own backward pass corrupts memory."""
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(kind(8, 16, kernel, stride=2)))
    if moved:
        optimizer, _natural = attach(model, period=1, samples=4)
        for _ in range(2):
            model(torch.randn(3, 8, 9, 9)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    weight = model[0].weight
    assert weight.stride() == torch.empty(weight.shape).stride()


def test_an_odd_batch_goes_backwards_through_a_strided_convolution_of_one_pixel():
    """Two threads, three images: this ended the process."""
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.BatchNorm2d(16)))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            model(torch.randn(3, 8, 28, 28)).relu().square().mean().backward()
    finally:
        torch.set_num_threads(threads)
    assert all(p.grad.isfinite().all() for p in model.parameters())
