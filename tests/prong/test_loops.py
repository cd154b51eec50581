"""Loops that people write around a whitened model: exact, or refused, never silently wrong."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn

import prong

WIDE = torch.float64


def data(number=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 6, generator=generator, dtype=WIDE)
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(99), dtype=WIDE) + 1
    return x, torch.randn(number, 3, generator=generator, dtype=WIDE)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE)


def loss_of(model, x, y):
    return (model(x) - y).square().mean()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)


MODES = ("fold", "activations", "preconditioned")


def plain_loop(steps=12, make=sgd, **options):
    """The loop that all others are held to; the plain model that it ends with."""
    model = prong.whiten(network())
    optimizer = make(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, **options})
    natural.initialize([data()[0]])
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        natural.step()
    return prong.fold(model)


def same(one, other, limit=1e-10):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max()


# The order of things


@pytest.mark.parametrize("mode", MODES)
def test_a_closure_is_a_step_like_any_other(mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    for step in range(12):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, *data(seed=step))
            loss.backward()
            return loss

        optimizer.step(closure)
    same(prong.fold(model), plain_loop(mode=mode))


@pytest.mark.parametrize("order", ["never", "before the step", "before the backward pass", "often"])
@pytest.mark.parametrize("mode", MODES)
def test_where_step_is_called_changes_nothing(order, mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    for step in range(12):
        optimizer.zero_grad()
        if order in ("before the backward pass", "often"):
            natural.step()
        loss_of(model, *data(seed=step)).backward()
        if order in ("before the step", "often"):
            natural.step()
        optimizer.step()
        if order == "often":
            natural.step()
            natural.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop(mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_refresh_between_backward_and_step_carries_the_gradients(mode):
    """Between backward and step, P^{-1} of the gradient: the step is that of the new basis."""
    ends = []
    for early in (True, False):
        model = prong.whiten(network())
        optimizer = sgd(model)
        natural = reparametrizer(
            model,
            optimizer,
            samples=64,
            step_limit=None,
            automatic=False,
            **{**EXACT, "mode": mode},
        )
        natural.initialize([data()[0]])
        x, y = data(seed=3)
        if early:
            loss_of(model, x, y).backward()
        else:
            natural.gathering.plan(0)
            with torch.no_grad():
                natural._refresher.collect(natural.units, [x])
                natural._refresher.gathered(natural.units)
            loss_of(model, x, y).backward()
        if early:
            natural._refresher.collect(natural.units, [x])
            natural._refresher.gathered(natural.units, spent=set())
        optimizer.step()
        ends.append(prong.fold(model))
    same(*ends)


@pytest.mark.parametrize("automatic", [True, False])
def test_micro_batches_are_one_step(automatic):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, automatic=automatic, **EXACT)
    natural.initialize([data()[0]])
    for step in range(12):
        x, y = data(seed=step)
        optimizer.zero_grad()
        for half in (slice(0, 32), slice(32, 64)):
            (loss_of(model, x[half], y[half]) / 2).backward()
            natural.step()  # once per micro-batch: only optimizer steps count
        optimizer.step()
        natural.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop())


def test_a_step_that_a_scaler_skips_does_not_count():
    model = prong.whiten(network().float())
    optimizer = sgd(model)
    natural = prong.Reparametrizer(model, optimizer, period=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    x, y = (part.float() for part in data())
    for step in range(6):
        optimizer.zero_grad()
        factor = float("inf") if step in (0, 3) else 1.0
        scaler.scale(loss_of(model, x, y) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert natural.steps == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_two_optimizers_are_one():
    """V in one optimizer and d in another: momentum and step control as in a single one."""
    model = prong.whiten(network())
    options = {"lr": 0.05, "momentum": 0.9}
    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], **options),
        torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], **options),
    ]
    natural = reparametrizer(model, optimizers, period=4, samples=64, **EXACT)
    natural.initialize([data()[0]])
    for step in range(12):
        for each in optimizers:
            each.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        for each in reversed(optimizers) if step % 2 else optimizers:
            each.step()
    assert natural.steps == 12
    same(prong.fold(model), plain_loop())


def test_optimizers_that_take_turns_keep_the_function():
    model = prong.whiten(network())
    weights = torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], lr=0.01)
    biases = torch.optim.Adam([p for p in model.parameters() if p.dim() == 1], lr=0.01)
    natural = reparametrizer(model, [weights, biases], period=2, samples=64, **EXACT)
    for step in range(9):
        model.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        (biases if step % 3 == 2 else weights).step()
    assert natural.steps >= 6


def test_an_optimizer_that_was_made_anew_is_refused():
    model = prong.whiten(network())
    natural = prong.Reparametrizer(model, sgd(model))
    anew = sgd(model)
    before = [p.clone() for p in model.parameters()]
    loss_of(model, *data()).backward()
    with pytest.raises(RuntimeError, match="SGD is about to move whitened parameters"):
        anew.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    prong.Reparametrizer(model, anew)  # takes over from the old one
    anew.step()
    assert natural.step() is None
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()  # no business of ours


def test_after_detach_any_optimizer_may_step():
    model = prong.whiten(network())
    natural = prong.Reparametrizer(model, sgd(model))
    natural.detach()
    loss_of(model, *data()).backward()
    sgd(model).step()


@pytest.mark.parametrize("name", ["Lookahead", "SAM"])
def test_state_inside_wrappers_is_found(name):
    module = pytest.importorskip("pytorch_optimizer")
    model = prong.whiten(network())
    if name == "Lookahead":
        optimizer = module.Lookahead(sgd(model), k=3)
    else:
        optimizer = module.SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    natural = reparametrizer(model, optimizer, period=3, samples=64, **EXACT)
    x, y = data()
    for _ in range(9):

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        closure()
        before = natural.steps
        optimizer.step(closure) if name == "SAM" else optimizer.step()
        assert natural.steps == before + 1
    inner = natural.optimizers[0]
    assert type(inner) is torch.optim.SGD
    if name == "Lookahead":
        slow = optimizer.state[model[0].weight]["slow_params"]
        assert slow is not model[0].weight
        assert (slow - model[0].weight).abs().max() < 1e-12  # step 9 is a multiple of k = 3


# What is counted


def test_the_window_follows_batches_that_become_smaller():
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=20, samples=256, **EXACT)
    natural.initialize([data()[0]])
    seen = []
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, *data(64 if step < 40 else 2, seed=step)).backward()
        optimizer.step()
        report = natural.step()
        if report is not None:
            seen.append((report.layers["0"].updated, report.layers["0"].examples))
    # 256 examples; then too few, which are refused; then all steps of the period.
    assert seen == [(True, 256), (True, 256), (False, 0), (True, 40), (True, 40)]


def counted(model, natural):
    return [float(unit.layer.moments.count) for unit in natural.units]


def test_passes_that_do_not_train_are_not_counted():
    model = prong.whiten(network())
    natural = reparametrizer(model, sgd(model), samples=640, **EXACT)
    x, y = data()
    with torch.no_grad():
        model(x)  # pseudo labels, a teacher, update_bn
    torch.optim.swa_utils.update_bn([x], model)
    with natural.paused():
        loss_of(model, x, y).backward()  # a pass with gradients that no step uses
    assert counted(model, natural) == [0, 0]
    loss_of(model, x, y).backward()
    assert counted(model, natural) == [64, 64]


def test_a_model_in_eval_mode_is_said():
    model = prong.whiten(network()).eval()
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=2, samples=64, **EXACT)
    loss_of(model, *data()).backward()
    optimizer.step()
    loss_of(model, *data()).backward()
    with pytest.warns(UserWarning, match="0, 2 saw no training pass.*the model is in eval mode"):
        optimizer.step()
    assert natural.report.kept == 2


def test_a_layer_unfrozen_in_mid_window_waits_for_a_whole_one():
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=20, samples=512, **EXACT)
    natural.initialize([data()[0]])
    examples = []
    for step in range(60):
        model[2].weight.requires_grad_(not 20 <= step < 38)
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        report = natural.step()
        if report is not None:
            examples.append((report.layers["2"].updated, report.layers["2"].examples))
    assert examples == [(True, 256), (False, 0), (True, 256)]


@pytest.mark.parametrize("mode", MODES)
def test_a_bias_that_is_frozen_in_mid_training_stays(mode):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=100, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])

    def step(seed):
        optimizer.zero_grad()
        loss_of(model, *data(seed=seed)).backward()
        optimizer.step()

    for seed in range(3):
        step(seed)
    assert model[0].mean.any()
    model[0].bias.requires_grad_(False)
    kept = prong.fold(model)[0].bias.detach().clone()
    # Held to a plain loop: the same model, made with c = 0 from there on.
    for seed in range(3):
        step(seed)
        now = prong.fold(model)[0].bias
        assert (now - kept).abs().max() <= 1e-14 * kept.abs().max()
    assert not model[0].mean.any()


# Copies and checkpoints


def advance(model, optimizer, natural, start, steps):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, *data(seed=step)).backward()
        optimizer.step()
        natural.step()
    return [p.detach().clone() for p in model.parameters()]


def narrow(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("start", [5, 14])
def test_copies_go_on_to_the_bit(how, make, start):
    model = prong.whiten(network())
    optimizer = make(model)
    natural = prong.Reparametrizer(model, optimizer, period=4, samples=100)
    natural.initialize([data()[0]])
    advance(model, optimizer, natural, 0, start)
    if how == "deepcopy":
        twins = copy.deepcopy((model, optimizer, natural))
    else:
        file = io.BytesIO()
        torch.save((model, optimizer, natural), file)
        file.seek(0)
        twins = torch.load(file, weights_only=False)
    assert twins[2].model is twins[0]
    assert twins[2].optimizers == [twins[1]]
    expected = advance(model, optimizer, natural, start, 10)
    found = advance(*twins, start, 10)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert twins[2].steps == natural.steps == start + 10


def trained(mode="auto"):
    model = prong.whiten(network())
    optimizer = sgd(model)
    natural = reparametrizer(model, optimizer, period=4, samples=64, **{**EXACT, "mode": mode})
    natural.initialize([data()[0]])
    advance(model, optimizer, natural, 0, 6)
    return model, optimizer, natural


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_plain_checkpoint_into_a_whitened_model(mode, strict):
    model, optimizer, natural = trained(mode)
    plain = network()
    x, _ = data()
    model.load_state_dict(plain.state_dict(), strict=strict)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()
    # and the step control measures V anew
    norm = natural.control.norms["0"].clone()
    advance(model, optimizer, natural, 0, 1)
    assert natural.control.norms["0"] != norm


@pytest.mark.parametrize("mode", MODES)
def test_a_whitened_checkpoint_into_a_plain_model(mode):
    model, _, _ = trained(mode)
    plain = network()
    plain[0].bias.data.fill_(7)
    x, _ = data()
    state = model.state_dict()
    plain.load_state_dict(state, strict=False)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*whitened_bias"):
        plain.load_state_dict(state)
    assert (model(x) - plain(x)).abs().max() < 1e-12 * plain(x).abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_a_whitened_checkpoint_into_a_whitened_model_is_bit_identical(mode):
    model, _, _ = trained(mode)
    other = prong.whiten(network())
    other.load_state_dict(model.state_dict())
    for (name, a), (_, b) in zip(
        model.state_dict(keep_vars=True).items(), other.state_dict(keep_vars=True).items(),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b), name


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_an_earlier_version_means_v(mode):
    model, _, _ = trained(mode)
    old = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    assert not any("whitened" in name for name in old)
    other = prong.whiten(network())
    other.load_state_dict(old)
    x, _ = data()
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("mode", MODES)
def test_averages_over_state_dicts_are_averages_of_w_and_b(mode):
    model, optimizer, natural = trained(mode)
    average, exact = None, None
    for step in range(6):
        advance(model, optimizer, natural, step, 1)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        plain = [p.detach().clone() for p in prong.fold(model).parameters()]
        if average is None:
            average, exact = state, plain
        else:
            average = {n: 0.7 * v + 0.3 * state[n] if v.shape == state[n].shape else state[n]
                       for n, v in average.items()}  # fmt: skip
            exact = [0.7 * a + 0.3 * b for a, b in zip(exact, plain, strict=True)]
    model.load_state_dict(average)
    found = list(prong.fold(model).parameters())
    assert all(
        (a - b).abs().max() < 1e-12 * b.abs().max() for a, b in zip(found, exact, strict=True)
    )


@pytest.mark.parametrize("assign", [True, False])
def test_the_meta_device(assign):
    with torch.device("meta"):
        model = prong.whiten(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE))
    plain = network()
    if not assign:
        model.to_empty(device="cpu")
        assert torch.equal(model[0].whitener[0], torch.eye(6, dtype=WIDE))
        assert not model[0].mean.any()
    model.load_state_dict(plain.state_dict(), assign=assign)
    x, _ = data()
    assert torch.equal(model(x), plain(x))
    # and whitened into meta
    source, _, _ = trained()
    with torch.device("meta"):
        other = prong.whiten(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(WIDE))
    other.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(other(x), source(x))


def test_reset_parameters_draws_what_the_plain_layer_would():
    model, _, _ = trained()
    torch.manual_seed(5)
    model[0].reset_parameters()
    torch.manual_seed(5)
    plain = nn.Linear(6, 8).to(WIDE)
    torch.manual_seed(5)
    plain.reset_parameters()
    x, _ = data()
    assert torch.equal(model[0](x), plain(x))


# torch.func


@pytest.mark.parametrize("mode", ["fold", "activations"])
def test_gradients_of_single_examples(mode):
    model, _, _ = trained(mode)
    x, y = data(5)
    parameters = dict(model.named_parameters())

    def loss(given, one, target):
        return (torch.func.functional_call(model, given, one[None])[0] - target).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for index in range(5):
        model.zero_grad()
        (model(x[index : index + 1])[0] - y[index]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (found[name][index] - parameter.grad).abs().max() < 1e-12


def test_natural_gradients_in_torch_func_are_refused():
    model, _, natural = trained("preconditioned")
    x, y = data(5)

    def loss(given):
        return (torch.func.functional_call(model, given, x) - y).square().sum()

    with pytest.raises(RuntimeError, match=r"natural.convert\('fold'\)"):
        torch.func.grad(loss)(dict(model.named_parameters()))
    natural.convert("fold")
    torch.func.grad(loss)(dict(model.named_parameters()))


@pytest.mark.parametrize("mode", MODES)
def test_functional_call_with_a_state_dict_computes_w_and_b(mode):
    model, _, _ = trained(mode)
    x, _ = data()
    found = torch.func.functional_call(model, model.state_dict(), x)
    assert (found - model(x)).abs().max() < 1e-12 * found.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_jacobians_of_the_inputs(mode):
    model, _, _ = trained(mode)
    model.requires_grad_(False)
    x, _ = data(1)
    found = torch.func.jacrev(model)(x[0])
    plain = prong.fold(model)
    assert (found - torch.func.jacrev(plain)(x[0])).abs().max() < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_sparse_inputs_count_as_what_they_are(mode):
    ends = []
    for sparse in (False, True):
        model = prong.whiten(network())
        optimizer = sgd(model)
        natural = reparametrizer(model, optimizer, period=2, samples=64, **{**EXACT, "mode": mode})
        for step in range(4):
            x, y = data(seed=step)
            x = x * (x > 1)
            optimizer.zero_grad()
            loss_of(model, x.to_sparse() if sparse else x, y).backward()
            optimizer.step()
        assert natural.report.layers["0"].updated
        ends.append(prong.fold(model))
    same(*ends)


def test_clipping_by_norm_is_by_the_norm_of_the_mode():
    """`clip_grad_norm_` sees g_V in fold mode, and the natural gradient g_V U in preconditioned."""
    norms = {}
    for mode in MODES:
        model, optimizer, _ = trained(mode)
        optimizer.zero_grad()
        loss_of(model, *data(seed=50)).backward()
        norms[mode] = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        if mode == "fold":
            natural = sum(
                (layer.weight.grad @ layer.whitener[0]).square().sum()
                + layer.bias.grad.square().sum()
                for layer in (model[0], model[2])
            ).sqrt()
    assert norms["fold"] == pytest.approx(float(norms["activations"]), rel=1e-9)
    assert norms["preconditioned"] == pytest.approx(float(natural), rel=1e-6)
