"""Optimizers and what is wrapped around them: which one moves the parameters, who else remembers.

A wrapper is known by name or refused by name: one that nobody looked at may keep parameters of
another time, and would mix coordinates without a word.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from prong.refresh.state_kinds import REFUSED, kinds_of, names_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

_INNER = ("optimizer", "base_optimizer", "_optimizer", "_base_optimizer", "optim")
_TRANSPARENT = ("accelerate.AcceleratedOptimizer", "lightning.LightningOptimizer")
"""Wrappers that hand every step on as it is."""
_WRAPPERS = (
    "pytorch_optimizer.Lookahead",
    "pytorch_optimizer.SAM",
    "pytorch_optimizer.GSAM",
    "pytorch_optimizer.LookSAM",
    "pytorch_optimizer.WSAM",
)
"""Wrappers whose own state is in the table, or that have none."""


def inner_of(optimizer: Any) -> Optimizer | None:
    """The optimizer that a wrapper hands its steps to; None for one that makes its own."""
    for name in _INNER:
        inner = getattr(optimizer, "__dict__", {}).get(name)
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            return inner
    return None


def levels_of(optimizer: Any) -> list[Optimizer]:
    """An optimizer and those inside it, the outermost first, without transparent wrappers.

    Raises:
        TypeError: if it is not an optimizer, or one that cannot run over whitened layers.
    """
    levels: list[Optimizer] = []
    current: Any = optimizer
    while current is not None:
        names = [*names_of(current), _qualified(current)]
        inner = inner_of(current)
        if not isinstance(current, torch.optim.Optimizer) and inner is None:
            raise TypeError(f"optimizer={current!r}: a torch.optim.Optimizer is needed")
        refused = next((name for name in names if name in REFUSED), None)
        if refused is not None:
            raise TypeError(f"optimizer: {type(current).__name__}: {REFUSED[refused]}")
        transparent = any(name in _TRANSPARENT for name in names)
        if inner is not None and not transparent and not any(n in _WRAPPERS for n in names):
            raise TypeError(
                f"optimizer: {type(current).__name__} wraps {type(inner).__name__} in a way that "
                "is not known here; hand over the inner optimizer and step it, or leave out the "
                "wrapper"
            )
        if inner is None or not transparent:
            levels.append(current)
        current = inner
    return levels


def _qualified(optimizer: object) -> str:
    """`package.Class`; Lightning's wrapper is called after the class that it wraps."""
    kind = type(optimizer)
    package = kind.__module__.partition(".")[0]
    name = kind.__name__
    if package in ("lightning", "pytorch_lightning"):
        return "lightning.LightningOptimizer"
    return f"{package}.{name}"


class AttachedOptimizers:
    """All optimizers of a model, with what is wrapped around them.

    Attributes:
        stepping: those that move the parameters.
        remembering: those that hold state: the same, and the wrappers around them.
        plain_sgd: whether all are `torch.optim.SGD`, not wrapped, whose path depends on no basis.
        steps_are_gradients: whether all move by η times a sum of gradients (SGD, also wrapped).
    """

    def __init__(self, optimizer: Any) -> None:
        """Look into an optimizer, or into several."""
        several = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        levels = [levels_of(each) for each in several]
        self.given = several
        self.stepping = [chain[-1] for chain in levels]
        self.remembering: list[Optimizer] = []
        seen: set[int] = set()
        for each in (level for chain in levels for level in reversed(chain)):
            if id(each.state) not in seen:  # SAM shares the inner one's
                seen.add(id(each.state))
                self.remembering.append(each)
        self.levels = [level for chain in levels for level in chain]
        inner = [type(each) is torch.optim.SGD for each in self.stepping]
        self.steps_are_gradients = all(inner)
        self.plain_sgd = all(inner) and all(len(chain) == 1 for chain in levels)

    def refuse_reset(self) -> None:
        """Refuse to start over where an optimizer counts the steps of all parameters together.

        Raises:
            ValueError: if there is one.
        """
        for each in self.remembering:
            name = type(each).__name__
            package = type(each).__module__.partition(".")[0]
            counts = any("step" in group or "k" in group for group in each.param_groups)
            if counts or (kinds_of(each) is not None and package != "torch"):
                raise ValueError(
                    f"momentum='reset': {name} counts the steps of all parameters together, so no "
                    "layer can start over by itself; allowed is 'gradient'"
                )


def before_step(optimizer: Optimizer, work: Callable[[Optimizer], None]) -> RemovableHandle:
    """Let `work` see the gradients of every step: at its begin, or after its closure ran.

    Args:
        optimizer: whose steps are watched.
        work: is given the optimizer.
    """

    def hook(
        optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # torch hands over the optimizer as the first of the arguments.
        closure = arguments[1] if len(arguments) > 1 else keywords.get("closure")
        if closure is None:
            work(optimizer)
            return None

        def closed(*given: Any) -> Any:
            loss = closure(*given)
            work(optimizer)
            return loss

        if len(arguments) > 1:
            return (arguments[0], closed, *arguments[2:]), keywords
        return arguments, {**keywords, "closure": closed}

    return optimizer.register_step_pre_hook(hook)


def after_step(optimizer: Optimizer, work: Callable[[Optimizer], None]) -> RemovableHandle:
    """Let `work` know of every step that was made; a step that is skipped is none."""
    # A refresh has nothing to gain from being compiled together with the step.
    quiet = torch.compiler.disable(work)  # type: ignore[no-untyped-call]
    return optimizer.register_step_post_hook(lambda made, *_: quiet(made))


class _Guard:
    """Refuses steps of optimizers that hold whitened parameters and were never attached.

    Their momentum would stay in old coordinates, or no layer would be reparametrised at all: an
    optimizer that was made anew, or a second one that was forgotten.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._owners: MutableMapping[Optimizer, Any] = weakref.WeakKeyDictionary()
        self._weights: MutableMapping[nn.Parameter, Any] = WeakIdKeyDictionary()
        self._harmless: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._handle: RemovableHandle | None = None

    def watch(
        self, owner: object, levels: Sequence[Optimizer], weights: Sequence[nn.Parameter]
    ) -> None:
        """Let only these optimizers move these parameters, as long as `owner` lives."""
        reference = weakref.ref(owner)
        self._harmless.clear()
        for level in levels:
            self._owners[level] = reference
        for weight in weights:
            self._weights[weight] = reference
        if self._handle is None:
            self._handle = register_optimizer_step_pre_hook(self._check)

    def release(self, owner: object) -> None:
        """Let anybody move what `owner` watched."""
        for optimizer in [o for o, held in self._owners.items() if held() in (None, owner)]:
            del self._owners[optimizer]
        for weight in [w for w, held in self._weights.items() if held() in (None, owner)]:
            del self._weights[weight]

    def owner_of(self, weights: Sequence[nn.Parameter]) -> Any:
        """What watches some of these parameters; None if nothing does."""
        for weight in weights:
            held = self._weights.get(weight)
            if held is not None and held() is not None:
                return held()
        return None

    def _check(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer in self._harmless or not self._weights:
            return
        mine = self._owners.get(optimizer)
        if mine is not None and mine() is not None:
            return
        found = [p for group in optimizer.param_groups for p in group["params"]]
        if self.owner_of(found) is None:
            self._harmless.add(optimizer)
            return
        raise RuntimeError(
            f"{type(optimizer).__name__} is about to move whitened parameters, and the "
            "Reparametrizer was made for another optimizer; make one for it, "
            "prong.Reparametrizer(model, optimizer), with all optimizers of the model in a list, "
            "or call detach() on the old one"
        )


GUARD = _Guard()
