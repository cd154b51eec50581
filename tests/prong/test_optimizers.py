"""Optimizer state across a refresh: each kind by its own law, for every optimizer in the table."""

from __future__ import annotations

import warnings

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn

import prong
from prong.refresh.optimizer_state import carry_state, held_state
from prong.refresh.state_kinds import REFUSED, TABLE, Kind, kinds_of

WIDE = torch.float64
RATES = {
    "Rprop": 1e-3, "Adadelta": 1.0, "AdaDelta": 1.0, "Adagrad": 1e-2, "Lion": 1e-3, "Tiger": 1e-3,
    "SignSGD": 1e-3, "ASGD": 5e-2, "SGD": 5e-2, "QHM": 5e-2, "SGDP": 5e-2, "PNM": 2e-2,
    "Prodigy": 1.0, "Muon": 5e-2, "SGDScheduleFree": 0.3, "SGDScheduleFreeClosure": 0.3,
    "SGDScheduleFreeReference": 0.3, "ScheduleFreeSGD": 0.3,
}  # fmt: skip
OPTIONS = {
    "SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}  # fmt: skip


def make(name, parameters):
    """An optimizer of the table, with settings that fill its state."""
    package, kind = name.split(".")
    module = torch.optim if package == "torch" else pytest.importorskip(package)
    if package == "heavyball":
        module.utils.compile_mode = None  # compilation takes minutes and is theirs to test
    rate = RATES.get(kind, 1e-2)
    if kind == "Lookahead":
        return module.Lookahead(torch.optim.Adam(parameters, lr=rate), k=3)
    options = OPTIONS.get(kind, {}) if package == "torch" else {}
    return getattr(module, kind)(parameters, lr=rate, **options)


def train_mode(optimizer):
    if hasattr(optimizer, "train"):
        optimizer.train()


def only_matrices(name, model):
    """Muon takes matrices alone: the biases go to AdamW, in an optimizer of their own."""
    if name != "torch.Muon":
        return make(name, model.parameters())
    return [
        make(name, [p for p in model.parameters() if p.dim() == 2]),
        torch.optim.AdamW([p for p in model.parameters() if p.dim() == 1], lr=1e-2),
    ]


def every(optimizer):
    return optimizer if isinstance(optimizer, list) else [optimizer]


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 12, generator=generator, dtype=WIDE)
    x = x @ torch.randn(12, 12, generator=generator, dtype=WIDE)
    x = (x - x.mean(0)) / x.std(0) + 0.5
    teacher = torch.randn(12, 4, generator=generator, dtype=WIDE)
    return x, (x @ teacher).argmax(1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).to(WIDE)


def run(name, whitened, steps=40):
    """The mean loss of the last ten of some steps, and how far refreshes moved the outputs."""
    model, (x, y) = network(), problem()
    if whitened:
        prong.whiten(model)
    optimizers = every(only_matrices(name, model))
    natural = None
    if whitened:
        given = optimizers if len(optimizers) > 1 else optimizers[0]
        # The step control bounds SGD's steps on purpose: that is not what is looked at here.
        natural = prong.Reparametrizer(model, given, period=10, step_limit=None, automatic=False)
        natural.initialize([x])
    for each in optimizers:
        train_mode(each)
    losses, moved = [], 0.0

    def closure():
        for each in optimizers:
            each.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(steps):
        closure()
        for each in optimizers:
            takes = "Closure" in type(each).__name__ or name.endswith("LBFGS")
            each.step(closure) if takes else each.step()
        if natural is not None:
            with torch.no_grad():
                before = model(x)
                report = natural.step()
                if report is not None:
                    moved = max(moved, float((model(x) - before).abs().max() / before.abs().max()))
    assert natural is None or natural.steps == steps
    return sum(losses[-10:]) / 10, moved


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


FRESH = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop",
         "ASGD", "SGD"]  # fmt: skip


@pytest.mark.parametrize("name", FRESH)
def test_reset_equals_a_fresh_optimizer(name):
    options = {"initial_accumulator_value": 0.3} if name == "Adagrad" else {}
    options |= OPTIONS.get(name, {})
    ends = []
    for anew in (False, True):
        model, (x, y) = network(), problem()
        prong.whiten(model)
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **options)
        natural = reparametrizer(
            model, optimizer, period=3, samples=9, momentum="reset", step_limit=None, **EXACT
        )
        for step in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 2 and anew:
                natural.detach()
                optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2, **options)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_reset_is_refused_where_steps_are_counted_for_all_parameters_together():
    schedulefree = pytest.importorskip("schedulefree")
    model = prong.whiten(network())
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="momentum='reset': AdamWScheduleFree counts"):
        reparametrizer(model, optimizer, momentum="reset")


def test_unknown_state_is_dropped_whole_and_said_once():
    class Odd(torch.optim.SGD):
        pass

    model = prong.whiten(network())
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    natural = reparametrizer(model, optimizer, samples=64, **EXACT)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "momentum_buffer": torch.ones_like(parameter), "strange": torch.ones_like(parameter)
        }  # fmt: skip
    with pytest.warns(UserWarning, match="Odd: the state of 0 was dropped, because what 'strange'"):
        natural.initialize([problem()[0]], "preserve")
    assert not any(optimizer.state.get(p) for p in model.parameters())
    natural.initialize([problem()[0]], "preserve")  # and no second warning


def test_a_history_is_dropped():
    model, (x, y) = network(), problem()
    prong.whiten(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    natural = reparametrizer(model, optimizer, period=10, spread=False)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(9)]
    with pytest.warns(UserWarning, match="LBFGS: the history was dropped"):
        losses.append(float(optimizer.step(closure).detach()))
    assert natural.steps == 10
    assert losses[-1] < 0.1 * losses[0]
    assert not optimizer.state


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_over_whitened_layers_is_refused_by_name(name):
    kind = type(name.split(".")[1], (torch.optim.SGD,), {"__module__": name.split(".")[0]})
    model = prong.whiten(network())
    optimizer = kind(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=f"optimizer: {kind.__name__}: "):
        prong.Reparametrizer(model, optimizer)


def test_an_unknown_wrapper_is_refused_and_names_both():
    class Averaging(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = prong.whiten(network())
    optimizer = Averaging(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="Averaging wraps SGD in a way that is not known here"):
        prong.Reparametrizer(model, optimizer)


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
