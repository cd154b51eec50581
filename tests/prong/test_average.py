"""Averages over a training whose coordinates move, against averages of the folded models."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prong


class Net(nn.Module):
    """Convolution, batch normalisation, two layers with one weight, an embedding of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.scale, self.head = nn.Parameter(torch.ones(4)), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        h = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(self.left(h).tanh() + self.right(h + 1) * self.scale)


def training(mode="fold", convert=False, steps=12, dtype=torch.float64, **options):
    """Yields after every step: the whitened model, over refreshes and conversions."""
    torch.manual_seed(0)
    model = prong.whiten(Net().to(dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {**EXACT, "period": 3, "samples": 32, "mode": mode, **options}
    natural = reparametrizer(model, optimizer, **options)
    yield model
    for step in range(steps):
        x = 2 * torch.randn(16, 1, 6, 6, dtype=dtype) + 1
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        natural.step()
        if convert:
            natural.convert(("fold", "activations", "preconditioned")[step % 3])
        yield model


def expected(snapshots, decay):
    """By hand: the first as it is, then decay·average + (1 − decay)·new, or the mean of all."""
    result = {name: value.clone() for name, value in snapshots[0].items()}
    for count, snapshot in enumerate(snapshots[1:], 1):
        share = 1 / (count + 1) if decay is None else 1 - decay
        for name, value in snapshot.items():
            if value.is_floating_point():
                result[name] = (1 - share) * result[name] + share * value
            else:
                result[name] = value.clone()
    return result


def assert_close(left, right, limit=1e-12):
    assert list(left) == list(right)
    for name, value in left.items():
        assert (value - right[name]).abs().max() < limit, name


@pytest.mark.parametrize("decay", [None, 0.0, 0.9, 0.999])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "activations"},
        {"mode": "preconditioned"},
        {"convert": True},
        {"two_sided": prong.TwoSided()},
        {"batch_diagonal": True},
    ],
    ids=str,
)
def test_it_is_the_average_of_the_folded_models(decay, options):
    states, average, moved = [], None, set()
    for model in training(**options):
        average = average or prong.average(model, decay, use_buffers=True)
        average.update()
        states.append({k: v.clone() for k, v in prong.fold(model).state_dict().items()})
        moved.add(float(model.conv.mean.sum()))
    assert len(moved) > 3
    plain = average.fold()
    assert type(plain.conv) is nn.Conv2d
    assert plain.left.weight is plain.right.weight
    assert_close(plain.state_dict(), expected(states, decay))
    assert type(model.conv) is not nn.Conv2d


def test_without_buffers_they_are_those_of_the_last_update():
    for step, model in enumerate(training()):
        if step == 0:
            average = prong.average(model)
        if step < 8:
            average.update()
            running = model.norm.running_mean.clone()
    assert not torch.equal(model.norm.running_mean, running)
    assert torch.equal(average.fold().norm.running_mean, running)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("use_buffers", [False, True])
def test_the_recipe_with_torch_is_exact_and_the_same(decay, use_buffers):
    average = averaged = None
    for model in training(convert=True):
        if average is None:
            average = prong.average(model, decay, use_buffers=use_buffers)
            rule = None if decay is None else get_ema_multi_avg_fn(decay)
            averaged = AveragedModel(prong.fold(model), multi_avg_fn=rule, use_buffers=use_buffers)
        average.update()
        averaged.update_parameters(prong.fold(model))
    found, wanted = average.fold(), averaged.module
    assert_close(dict(found.named_parameters()), dict(wanted.named_parameters()))
    assert (found.norm.running_mean - wanted.norm.running_mean).abs().max() < 1e-12
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    assert (found.eval()(x) - averaged.eval()(x)).abs().max() < 1e-12


def stored(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, stored, "state"], ids=["copied", "stored", "state"])
def test_copied_stored_and_resumed_averages_go_on_alike(way):
    for step, model in enumerate(training(convert=True)):
        if step == 0:
            average = prong.average(model, 0.9, use_buffers=True)
        average.update()
        if step == 6:
            if way == "state":
                other = prong.average(model, 0.1, use_buffers=True)
                other.load_state_dict(stored(average.state_dict()))
            else:
                twin, other = way((model, average))
                assert other.model is twin is not model
                other.model = model
            before = {k: v.clone() for k, v in other.state_dict()["tensors"].items()}
        if step > 6:
            other.update()
    assert before["parameters.conv.weight"].ne(other._parameters["conv.weight"]).any()
    assert other.updates == average.updates == 13
    left, right = average.state_dict(), other.state_dict()
    assert left["meta"] == right["meta"]
    assert all(torch.equal(v, right["tensors"][k]) for k, v in left["tensors"].items())


def test_it_follows_devices_and_types():
    for step, model in enumerate(training(dtype=torch.float32)):
        if step == 0:
            average = prong.average(model)
        average.update()
    model.to(torch.bfloat16)
    average.update()
    assert average._parameters["conv.weight"].dtype == torch.float32
    assert average.fold().conv.weight.dtype == torch.bfloat16
    model.double()
    average.update()
    assert average._parameters["conv.weight"].dtype == torch.float64
    assert average.fold().conv.weight.dtype == torch.float64


def test_half_types_do_not_lose_small_updates():
    model = prong.whiten(nn.Sequential(nn.Linear(2, 2)).to(torch.bfloat16))
    average = prong.average(model, 0.999)
    nn.init.zeros_(model[0].weight)
    average.update()
    nn.init.ones_(model[0].weight)
    for _ in range(1000):
        average.update()
    assert (average._parameters["0.weight"] - (1 - 0.999**1000)).abs().max() < 1e-4


def test_bad_arguments_states_and_models_are_refused():
    model = prong.whiten(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="decay='x'"):
        prong.average(model, "x")
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        prong.average(model, 1.0)
    with pytest.raises(ValueError, match="no whitened layer"):
        prong.average(nn.Linear(2, 2))
    average = prong.average(model)
    with pytest.raises(ValueError, match="no update was made"):
        average.fold()
    average.update()
    other = prong.average(prong.whiten(nn.Sequential(nn.Linear(2, 3))))
    with pytest.raises(ValueError, match=r"0\.\w+ is of another model"):
        other.load_state_dict(average.state_dict())
    assert other.updates == 0
    with pytest.raises(ValueError, match="version 7"):
        other.load_state_dict({"meta": {"version": 7}, "tensors": {}})
    model.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"1\.\w+ is of another model"):
        average.update()


class ModelEmaV3(nn.Module):
    """As timm's: a copy of the model, registered under `module`."""

    def __init__(self, model):
        super().__init__()
        self.module = copy.deepcopy(model)


class LightningLike(AveragedModel):
    pass


@pytest.mark.parametrize("kind", [AveragedModel, LightningLike, ModelEmaV3])
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: nn.Sequential(m, nn.ReLU())])
def test_averaging_modules_refuse_whitened_models_and_tell_what_to_do(kind, wrap):
    plain = nn.Sequential(nn.Linear(2, 2))
    kind(wrap(plain))
    model = prong.whiten(plain)
    with pytest.raises(ValueError, match=rf"(?s){kind.__name__}.*prong\.average.*prong\.fold"):
        kind(wrap(model))
    kind(wrap(prong.fold(model)))
    nn.Sequential(wrap(model))


def test_the_watch_is_set_once():
    prong.whiten(nn.Sequential(nn.Linear(2, 2)))
    before = len(torch_module._global_module_registration_hooks)
    prong.whiten(nn.Sequential(nn.Linear(2, 2)))
    assert len(torch_module._global_module_registration_hooks) == before


def test_lightning_averages_are_refused():
    lightning = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("no EMAWeightAveraging here")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = prong.whiten(nn.Sequential(nn.Linear(2, 2)))

    with pytest.raises(ValueError, match=r"prong\.average"):
        callbacks.EMAWeightAveraging().setup(lightning.Trainer(logger=False), Module(), "fit")
