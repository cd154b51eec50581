"""The targets that a function of the user's own yields: all of one kind, the one the task needs."""

from __future__ import annotations

import math
import numbers
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.data.class_folders import UNPRINTABLE
from pipelines.tasks.form import CLASSIFICATION, RECONSTRUCTION, REGRESSION

Kind = Literal["class", "values", "nothing"]
NAMED = {"class": "a class", "values": "a number or several", "nothing": "None"}
_ALLOWED: dict[str, tuple[Kind, ...]] = {
    CLASSIFICATION: ("class",),
    REGRESSION: ("values",),
    RECONSTRUCTION: ("nothing", "class"),
}


@dataclass(frozen=True)
class FoundTargets:
    """All targets.

    Attributes:
        classes: Names of the classes, numbers in their order; empty where there are none.
        labels: Positions in `classes`, [n]; 0 where there are none.
        values: Numbers [n, values]; None where there are none.
        value_names: Their names.
        told: Each target as plain values, for a hash.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    values: NDArray[np.float64] | None
    value_names: tuple[str, ...]
    told: Sequence[object]


class Targets:
    """Targets, checked one by one; the first says what all others must be.

    Args:
        task: `task.name`; with `auto` or an own task, every kind is allowed.
    """

    def __init__(self, task: str) -> None:
        self._task = task
        self._kind: Kind | None = None
        self._type: type | None = None  # of classes: text or whole number
        self._names: tuple[str, ...] = ()  # of values
        self._taken: list[Any] = []

    def add(self, target: Any) -> None:
        """Take the target of one more example.

        Raises:
            UserError: If it is no target, one of another kind than those before, or not what the
                task needs.
        """
        kind = self._kind or self._decide(target)
        match kind:
            case "nothing":
                if target is not None:
                    raise UserError(f"{_shown(target)}; the targets before it are None")
            case "class":
                target = self._class(target)
            case "values":
                target = self._values(target)
        self._kind = kind
        self._taken.append(target)

    def _decide(self, target: Any) -> Kind:
        allowed = _ALLOWED.get(self._task, ("nothing", "class", "values"))
        kind: Kind
        if target is None:
            kind = "nothing"
        elif isinstance(target, str | bool | np.bool_):
            kind = "class"
        elif isinstance(target, numbers.Integral):
            kind = "class" if "class" in allowed else "values"
        elif isinstance(target, numbers.Real) or _several(target):
            kind = "values"
        else:
            raise UserError(f"{_shown(target)}; allowed: a class, a number or several, or None")
        if kind not in allowed:
            wanted = " or ".join(NAMED[each] for each in allowed)
            raise UserError(f"{_shown(target)}; task.name = {self._task} needs {wanted}")
        return kind

    def _class(self, target: Any) -> str | int:
        named: str | int
        if isinstance(target, str):
            named = unicodedata.normalize("NFC", target)
            if not named.strip() or UNPRINTABLE.search(named):
                raise UserError(f"target {target!a}: not a printable name of a class")
        elif isinstance(target, bool | np.bool_):
            named = str(bool(target))
        elif isinstance(target, numbers.Integral):
            named = int(target)
        else:
            raise UserError(f"{_shown(target)}; the targets before it are classes")
        self._type = self._type or type(named)
        if type(named) is not self._type:
            raise UserError(
                f"{_shown(target)}; classes are all texts or all whole numbers, and those before "
                f"are {'texts' if self._type is str else 'numbers'}"
            )
        return named

    def _values(self, target: Any) -> tuple[float, ...]:
        items = list(target) if _several(target) else [target]
        for item in items:
            if isinstance(item, bool | np.bool_) or not isinstance(item, numbers.Real):
                raise UserError(f"{_shown(target)}; the targets are numbers, or several each")
            if not math.isfinite(item):
                raise UserError(f"{_shown(target)}: every number must be finite")
        default = ("value",) if len(items) == 1 else [f"value{n}" for n in range(1, len(items) + 1)]
        names = tuple(getattr(target, "_fields", default))
        self._names = self._names or names
        if names != self._names:
            raise UserError(
                f"{_shown(target)}: {', '.join(names) or 'no number'}; those before it have "
                f"{', '.join(self._names)}"
            )
        if not items:
            raise UserError("no number; at least one is needed")
        return tuple(float(item) for item in items)

    def found(self) -> FoundTargets:
        """Return all targets."""
        labels = np.zeros(len(self._taken), np.int64)
        if self._kind == "values":
            values = np.array(self._taken, np.float64)
            return FoundTargets((), labels, values, self._names, self._taken)
        if self._kind == "nothing":
            return FoundTargets((), labels, None, (), self._taken)
        order = sorted(set(self._taken))
        positions = {name: at for at, name in enumerate(order)}
        labels[:] = [positions[name] for name in self._taken]
        return FoundTargets(tuple(map(str, order)), labels, None, (), self._taken)


def _several(target: Any) -> bool:
    if isinstance(target, np.ndarray):
        return target.ndim == 1
    return isinstance(target, list | tuple)


def _shown(target: Any) -> str:
    text = repr(target)
    if isinstance(target, np.ndarray):
        text = f"an array {target.dtype} {list(target.shape)}"
    return f"target {text if len(text) <= 60 else text[:59] + '…'} ({type(target).__name__})"
