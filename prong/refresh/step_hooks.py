"""Hooks that run just before an optimizer's step, when its gradients are complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle


def before_step(optimizer: Optimizer, work: Callable[[Optimizer], None]) -> RemovableHandle:
    """Call `work` in every step of an optimizer: at the beginning, or after the closure ran.

    Args:
        optimizer: the optimizer.
        work: a function of the optimizer, called when the gradients are complete.

    Returns:
        A handle that removes the hook.
    """

    def hook(
        optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # torch passes the optimizer as the first of the arguments.
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


def optimizers_of(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return one optimizer or several as a list; raise TypeError for anything else."""
    several = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    for each in several:
        if not isinstance(each, torch.optim.Optimizer):
            raise TypeError(f"optimizer={each!r}: a torch.optim.Optimizer is needed")
    return several
