"""The one table of methods: how each is built, what is searched for it, and what it needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import prong
from pipelines.paper import peer_optimizers as optimizers
from pipelines.paper.peer_optimizers import Optimizers, of_package
from pipelines.systems.optuna.dimensions import Choice, Dimension, Range, Value

Values = Mapping[str, Value]

COMMON: dict[str, Dimension] = {
    "normalised": Choice((False, True)),
    "batch": Choice((128, 256)),
    "schedule": Choice(("constant", "linear", "cosine")),
    "warmup": Choice((0.0, 0.05, 0.2)),
    "clip": Choice((0.0, 3.0, 30.0)),
}
"""What is searched for every method, beside its own settings: batch normalisation, images of an
update, how the rate falls to zero, the share of the updates in which it rises first, and the
largest norm of the gradient (0: none)."""
_COMMON_FIRST: Values = {"batch": 128, "schedule": "linear", "warmup": 0.05, "clip": 0.0}


def _rate(low: float, high: float) -> Range:
    return Range(low, high, log=True, whole=False)


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        label: What tables call it.
        build: Makes its optimizers for a model with these settings.
        rate: Where its rate is searched.
        first: The rate to begin with.
        own: What is searched for it alone, and with what each begins.
        whitened: Whether it trains the whitened model, with a Reparametrizer.
        first_order: Whether it counts among the first-order baselines.
        module: That it needs besides torch; empty: none.
        install: What to install for it.
        never: Why no package has it; empty if one does.
        leaves: Common settings that it has of its own.
        begins: Common settings that its search begins with instead of everyone's.
    """

    label: str
    build: Callable[[nn.Module, Values], Optimizers]
    rate: Range = field(default_factory=lambda: _rate(1e-4, 0.1))
    first: float = 1e-3
    own: Mapping[str, tuple[Dimension, Value]] = field(default_factory=dict)
    whitened: bool = False
    first_order: bool = False
    module: str = ""
    install: str = ""
    never: str = ""
    leaves: tuple[str, ...] = ()
    begins: Values = field(default_factory=dict)

    @property
    def missing(self) -> str:
        """Why it is not available; empty if it is."""
        if self.never:
            return f"not available: {self.never}"
        if self.module and find_spec(self.module) is None:
            return f"not available: install {self.install}"
        return ""

    @property
    def space(self) -> dict[str, Dimension]:
        """All that is searched."""
        common = {key: kind for key, kind in COMMON.items() if key not in self.leaves}
        return {"lr": self.rate, **common, **{key: kind for key, (kind, _) in self.own.items()}}

    def begin(self, normalised: bool) -> dict[str, Value]:
        """Return settings to begin a search with."""
        first = {**_COMMON_FIRST, **self.begins}
        common = {key: value for key, value in first.items() if key not in self.leaves}
        own = {key: value for key, (_, value) in self.own.items()}
        return {"lr": self.first, "normalised": normalised, **common, **own}

    @property
    def beginnings(self) -> tuple[Values, ...]:
        """All settings that a search begins with."""
        return self.begin(normalised=True), self.begin(normalised=False)


def _of(build: optimizers.Build) -> Callable[[nn.Module, Values], Optimizers]:
    return lambda model, values: build(model, float(values["lr"]))


def _rmsprop(model: nn.Module, values: Values) -> Optimizers:
    return optimizers.rmsprop(model, float(values["lr"]), float(values.get("momentum", 0.9)))


def _newton_muon(model: nn.Module, values: Values) -> Optimizers:
    return optimizers.newton_muon(model, float(values["lr"]), int(values.get("refresh", 32)))


def _soap(model: nn.Module, values: Values) -> Optimizers:
    every = int(values.get("refresh", 10))
    build = of_package("pytorch_optimizer", "SOAP", precondition_frequency=every)
    return build(model, float(values["lr"]))


def _shampoo(model: nn.Module, values: Values) -> Optimizers:
    every = int(values.get("refresh", 100))
    name = "ScalableShampoo"
    build = of_package("pytorch_optimizer", name, preconditioning_compute_steps=every)
    return build(model, float(values["lr"]))


def _klsoap(model: nn.Module, values: Values) -> Optimizers:
    module: Any = importlib.import_module("heavyball.utils")
    module.compile_mode = None  # compiling takes longer than a trial
    every = int(values.get("refresh", 2))
    build = of_package("heavyball", "KLSOAP", precondition_frequency=every)
    return build(model, float(values["lr"]))


def _none(model: nn.Module, values: Values) -> Optimizers:
    raise NotImplementedError("a method that is not available builds nothing")


_SGD_RATE = _rate(1e-4, 0.3)
_PRONG: dict[str, tuple[Dimension, Value]] = {
    "period": (Choice((20, 100)), 100),
    "damping": (_rate(0.01, 1.0), 0.1),
    "step_limit": (_rate(0.001, 0.02), 0.003),
    "init": (Choice(("balanced", "whitened", "preserve")), "balanced"),
}
METHODS: dict[str, Method] = {
    "prong": Method(
        "PRONG",
        _of(optimizers.sgd),
        rate=_rate(3e-3, 0.3),
        first=0.03,
        own=_PRONG,
        whitened=True,
        leaves=("clip",),  # its step control is one
        # Its defaults: step control makes up for a warm-up, and for a rate that falls.
        begins={"schedule": "constant", "warmup": 0.0},
    ),
    "sgd": Method(
        "SGD, momentum", _of(optimizers.sgd), rate=_SGD_RATE, first=0.01, first_order=True
    ),
    "rmsprop": Method(
        "RMSprop, momentum",
        _rmsprop,
        rate=_rate(1e-5, 1e-2),
        first=3e-4,
        own={"momentum": (Choice((0.0, 0.9)), 0.9)},
        first_order=True,
    ),
    "adam": Method("Adam", _of(optimizers.adam), first_order=True),
    "adamw": Method("AdamW", _of(optimizers.adamw), first_order=True),
    "schedule-free": Method(
        "Schedule-free AdamW",
        _of(of_package("schedulefree", "AdamWScheduleFree")),
        first=2.5e-3,
        first_order=True,
        module="schedulefree",
        install="schedulefree",
        leaves=("schedule",),
    ),
    "muon": Method("Muon + AdamW", _of(optimizers.muon), first=0.01),
    "newton-muon": Method(
        "Newton-Muon + AdamW", _newton_muon, first=0.01, own={"refresh": (Choice((8, 32, 128)), 32)}
    ),
    "soap": Method(
        "SOAP",
        _soap,
        first=0.01,
        own={"refresh": (Choice((2, 10, 50)), 10)},
        module="pytorch_optimizer",
        install="pytorch-optimizer",
    ),
    "shampoo": Method(
        "Shampoo",
        _shampoo,
        rate=_SGD_RATE,
        first=0.01,
        own={"refresh": (Choice((10, 30, 100)), 30)},
        module="pytorch_optimizer",
        install="pytorch-optimizer",
    ),
    "kl-soap": Method(
        "KL-SOAP",
        _klsoap,
        first=0.01,
        own={"refresh": (Choice((2, 10)), 2)},
        module="heavyball",
        install="heavyball",
    ),
    "k-fac": Method(
        "K-FAC",
        _none,
        never="no package that is maintained offers it as an optimizer of torch",
    ),
}
"""By the name that `--only` takes, in the order of tables."""


@dataclass
class AttachedMethod:
    """A method at work on a model.

    Attributes:
        model: Whitened, if the method whitens.
        optimizers: Of its parameters.
        natural: Of a whitened model.
    """

    model: nn.Module
    optimizers: Optimizers
    natural: prong.Reparametrizer | None

    def averaged(self, averaged: bool) -> None:
        """Put the weights that a schedule-free optimizer measures with into place, or back."""
        for optimizer in self.optimizers:
            switch = getattr(optimizer, "eval" if averaged else "train", None)
            if switch is not None:
                switch()


def attach(
    method: Method, model: nn.Module, values: Values, batches: Iterable[Any] | None = None
) -> AttachedMethod:
    """Attach a method to a model; a whitened one is not initialised.

    Args:
        method: One that is available.
        model: Not whitened; it is changed.
        values: Its settings. What is left out is at the package's defaults; PRONG takes `lr`,
            `period`, `damping`, `step_limit` (0: none), `momentum`, `early` and `mode`.
        batches: Of a whitened model's statistics; None: those of its training steps.
    """
    if not method.whitened:
        attached = AttachedMethod(model, method.build(model, values), None)
        attached.averaged(False)
        return attached
    model = prong.whiten(model)
    made = method.build(model, values)
    options: dict[str, Any] = {}
    for key, kind in (("period", int), ("samples", int), ("damping", float), ("mode", str)):
        if key in values:
            options[key] = kind(values[key])
    if "step_limit" in values:
        options["step_limit"] = float(values["step_limit"]) or None
    if "early" in values:
        options["savings"] = prong.Savings(early=bool(values["early"]))
    if "momentum" in values:
        options["whitening"] = prong.Whitening(momentum=str(values["momentum"]))
    natural = prong.Reparametrizer(model, made, batches=batches, **options)
    return AttachedMethod(model, made, natural)


def device() -> torch.device:
    """Return where trainings run: the first GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
