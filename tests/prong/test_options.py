"""Options are checked by name, and old names say the new ones."""

from __future__ import annotations

import pytest
import torch
from exact import EXACT, reparametrizer
from torch import nn

import prong


def small(**options):
    torch.manual_seed(0)
    model = prong.whiten(nn.Sequential(nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(50, 4) @ torch.randn(4, 4) + 1
    return reparametrizer(model, optimizer, **{**EXACT, "samples": 50, **options}), x


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"period": 0}, ValueError),
        ({"period": 1.5}, TypeError),
        ({"samples": -1}, ValueError),
        ({"damping": 0.0}, ValueError),
        ({"damping": float("nan")}, ValueError),
        ({"step_limit": 0.0}, ValueError),
        ({"step_limit": "x"}, TypeError),
        ({"positions": 0}, ValueError),
        ({"leading": 0.0}, ValueError),
        ({"root": "qr"}, ValueError),
        ({"momentum": "none"}, ValueError),
        ({"kind": "half"}, ValueError),
        ({"decomposition_dtype": torch.float16}, ValueError),
        ({"mode": "fast"}, ValueError),
        ({"two_sided": "yes"}, TypeError),
    ],
)
def test_bad_options_are_refused_by_name(option, error):
    (name,) = option
    with pytest.raises(error, match=f"^{name}="):
        small(**option)


def test_bad_groups_of_options_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^statistics='none': allowed are empirical, sampled"):
        prong.TwoSided("none")
    with pytest.raises(ValueError, match=r"^damping=-1.0: it must be positive"):
        prong.TwoSided(damping=-1.0)
    model = prong.whiten(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, value, hint in (
        ("whitening", "diagonal", r"prong.Whitening\(kind='diagonal'\) is needed"),
        ("two_sided", "sampled", r"prong.TwoSided\(statistics='sampled'\) is needed"),
        ("savings", 0.3, "a prong.Savings is needed"),
    ):
        with pytest.raises(TypeError, match=f"^{name}={value!r}: {hint}"):
            prong.Reparametrizer(model, optimizer, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "now"),
    [
        ("root", "zca", r"whitening=prong.Whitening\(root=…\) now"),
        ("precision", torch.float64, r"prong.Whitening\(decomposition_dtype=…\) now"),
        ("leading", None, r"savings=prong.Savings\(leading=…\) now"),
        ("output_damping", 0.1, r"prong.TwoSided\(damping=…\) now"),
        ("clip", 0.001, "step_limit=… now"),
        ("side_stream", True, "prong.extensions.side_stream.gather_on_side_stream"),
        ("refit", 0.3, "was removed"),
        ("colour", "red", "no such argument"),
    ],
)
def test_an_old_name_says_the_new_one(name, value, now):
    model = prong.whiten(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=f"^{name}=.*{now}"):
        prong.Reparametrizer(model, optimizer, **{name: value})


def test_the_mode_has_a_new_name():
    with pytest.raises(ValueError, match="its name is now 'preconditioned'"):
        small(mode="canonical")


def test_other_bad_arguments_are_refused():
    natural, x = small()
    with pytest.raises(ValueError, match="init='he'"):
        natural.initialize([x], "he")
    with pytest.raises(ValueError, match="batches: there is none"):
        natural.initialize([])
    with pytest.raises(TypeError, match="holds no tensor"):
        natural.initialize([["a"]])
    with pytest.raises(ValueError, match="two_sided=None"):
        natural.sample_fisher(x)
    with pytest.raises(ValueError, match="no whitened layer"):
        reparametrizer(nn.Linear(2, 2), natural.optimizers[0])
    with pytest.raises(ValueError, match="holds none of the model's whitened weights"):
        reparametrizer(prong.whiten(nn.Linear(2, 2)), natural.optimizers[0])
    with pytest.raises(TypeError, match="optimizer=3"):
        reparametrizer(natural.model, 3)
