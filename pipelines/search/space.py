"""What is searched: `train.lr`, `train.lr=1e-3..0.3` or `train.method=sgd,prong+`, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, get_args

from pipelines.core import params_file
from pipelines.core.config import NETWORKS, Method, Params, TrainConfig
from pipelines.core.errors import UserError
from pipelines.systems.optuna.dimensions import Choice, Dimension, Range, Value, written

SECTION = "train"
Space = Mapping[str, Dimension]
"""Key of the section `train` → what it may be."""

_FIXED = {
    "processes": "a trial has one",
    "device": "it does not change what is learnt",
    "seed": "the best seed is best by chance",
    "epochs": "--epochs sets them for all trials",
    "checkpoint_from": "it is the start of every trial",
}
"""Keys that are not searched, and why."""
_WHITENING = ("period", "samples", "damping", "step_limit", "init")
"""Keys that only the methods with whitening look at."""
_KNOWN: dict[str, Dimension] = {
    "network": Choice(NETWORKS),
    "method": Choice(get_args(Method)),
    "batch": Range(16, 256, log=True, whole=True),
    "momentum": Range(0.8, 0.99, log=False, whole=False),
    "weight_decay": Range(1e-5, 1e-2, log=True, whole=False),
    "warmup": Range(0, 200, log=False, whole=True),
    "patience": Range(1, 5, log=False, whole=True),
    "drop": Range(0.05, 0.5, log=False, whole=False),
    "cooldown": Range(0.0, 1.0, log=False, whole=False),
    "augment": Range(0, 4, log=False, whole=True),
    "flip": Choice((False, True)),
    "width": Range(8, 64, log=True, whole=True),
    "hidden": Range(32, 512, log=True, whole=True),
    "period": Range(5, 100, log=True, whole=True),
    "samples": Range(500, 5000, log=True, whole=True),
    "damping": Range(1e-3, 1.0, log=True, whole=False),
    "step_limit": Range(3e-4, 0.03, log=True, whole=False),
    "init": Choice(("balanced", "whitened", "preserve")),
}
"""The ranges of keys that are given without one; that of `lr` depends on the method."""
_AROUND = (30.0, 10.0)
"""The default rate of a method divided and multiplied by these: the range of `train.lr`."""


def parse(asked: Sequence[str], params: Params, rates: Mapping[str, float]) -> dict[str, Dimension]:
    """Return what is to be searched.

    Args:
        asked: `train.KEY`, `train.KEY=LOW..HIGH` or `train.KEY=VALUE,VALUE…`.
        params: The parameters of the project, for everything that is not searched.
        rates: Method → its default learning rate.

    Returns:
        Key of the section → what it may be, in the order of `asked`.

    Raises:
        UserError: For the first key, range or value that is not allowed; the message names it and
            what is allowed.
    """
    if not asked:
        allowed = ", ".join(f"{SECTION}.{key}" for key in _KEYS)
        raise UserError(f"search: name what to search; allowed: {allowed}")
    found: dict[str, Dimension | None] = {}
    for text in asked:
        name, equals, values = (part.strip() for part in text.partition("="))
        key = _key(name)
        if key in found:
            raise UserError(f"{name}: given twice")
        found[key] = _given(key, values, params) if equals else None
    methods = _values(found.get("method"), params.train.method)
    if "method" in found and found["method"] is None:
        methods = _KNOWN["method"].values  # type: ignore[union-attr]
    if not any("prong" in str(method) for method in methods):
        for key in found:
            if key in _WHITENING:
                raise UserError(
                    f"{SECTION}.{key}: has no influence with train.method = "
                    f"{', '.join(map(str, methods))}; allowed: with prong or prong+"
                )
    return {key: one or _default(key, methods, rates) for key, one in found.items()}


_KEYS = [field.name for field in fields(TrainConfig) if field.name not in _FIXED]


def _key(name: str) -> str:
    section, dot, key = name.partition(".")
    allowed = ", ".join(f"{SECTION}.{one}" for one in _KEYS)
    if section != SECTION or not dot:
        raise UserError(f"{name!r}: only keys of the section {SECTION} are searched: {allowed}")
    if key in _FIXED:
        raise UserError(f"{name}: is not searched, because {_FIXED[key]}; allowed: {allowed}")
    if key not in _KEYS:
        near = difflib.get_close_matches(key, _KEYS, 1)
        hint = f"did you mean {SECTION}.{near[0]}? " if near else ""
        raise UserError(f"{name}: unknown key; {hint}allowed: {allowed}")
    return key


def _values(dimension: Dimension | None, otherwise: Value) -> tuple[Value, ...]:
    return dimension.values if isinstance(dimension, Choice) else (otherwise,)


def _default(key: str, methods: Sequence[Value], rates: Mapping[str, float]) -> Dimension:
    if key == "lr":
        low, high = _AROUND
        found = [rates[str(method)] for method in methods]
        return Range(min(found) / low, min(1.0, max(found) * high), log=True, whole=False)
    if key not in _KNOWN:
        raise UserError(
            f"{SECTION}.{key}: has no range of its own; give one, such as {SECTION}.{key}=1..4, or "
            f"values, such as {SECTION}.{key}=1,2,4"
        )
    return _KNOWN[key]


def _given(key: str, text: str, params: Params) -> Dimension:
    """Return what is written after `KEY=`; every bound and value must be one that may be set."""
    present = getattr(params.train, key)
    number = isinstance(present, int | float) and not isinstance(present, bool)
    number = number or key == "lr"  # which may be auto
    whole = isinstance(present, int)
    low, dots, high = (part.strip() for part in text.partition(".."))
    shown = f"{SECTION}.{key} = {text!r}"
    if not dots:
        listed = [part.strip() for part in text.split(",")]
        choice = Choice(tuple(_value(part) for part in listed))
        if len(listed) < 2 or len(set(listed)) < len(listed):
            kind = "a range LOW..HIGH, or " if number else ""
            raise UserError(f"{shown}: allowed: {kind}two or more different values: A,B")
        for value in choice.values:
            _check(key, value, params)
        return choice
    if not number:
        raise UserError(f"{shown}: has no order; allowed: values, such as A,B")
    bounds = []
    for part in (low, high):
        value = _value(part)
        if isinstance(value, bool | str) or (whole and not isinstance(value, int)):
            kind = "whole numbers" if whole else "numbers"
            raise UserError(
                f"{shown}: {part!r} is none of the {kind} that a range needs: LOW..HIGH"
            )
        _check(key, value, params)
        bounds.append(value)
    if not bounds[0] < bounds[1]:
        raise UserError(f"{shown}: the first number must be below the second")
    log = bounds[0] > 0 and bounds[1] / bounds[0] > 10
    return Range(bounds[0], bounds[1], log=log, whole=whole)


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def _check(key: str, value: Value, params: Params) -> None:
    values: dict[str, Any] = asdict(params)
    values[SECTION][key] = value
    params_file.parse(values)


def configured(train: TrainConfig, values: Mapping[str, Value], epochs: int) -> TrainConfig:
    """Return the settings of a trial."""
    return replace(train, **{**values, "epochs": epochs})  # type: ignore[arg-type]


def present(train: TrainConfig, space: Space, rate: float) -> dict[str, Value] | None:
    """Return the present settings as a proposal; None if they lie outside of what is searched.

    Args:
        train: The present settings.
        space: What is searched.
        rate: What `train.lr: auto` means for them.
    """
    values: dict[str, Value] = {key: getattr(train, key) for key in space}
    if values.get("lr") == "auto" and isinstance(space["lr"], Range):
        values["lr"] = rate
    return values if all(space[key].holds(value) for key, value in values.items()) else None


def assignments(values: Mapping[str, Value]) -> list[str]:
    """Return settings as `train.KEY=VALUE`, as `prong run --set` and `params.yaml` take them."""
    return [f"{SECTION}.{key}={written(value)}" for key, value in values.items()]


def brief(values: Mapping[str, Value]) -> str:
    """Return settings in one line, for people."""
    return "  ".join(f"{key} {written(value)}" for key, value in values.items())
