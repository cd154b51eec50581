"""What each tensor of an optimizer's state means, and so how it follows a change of basis.

A name says nothing by itself: `momentum_buffer` is a sum of gradients in SGD and a sum of updates
in RMSprop. So there is one table by class. An optimizer that is not in it, or a tensor that its
entry does not name, is *unknown*: the state of the parameter is then dropped as a whole, because an
optimizer with half of its state is worse than one that starts over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer


class Kind(Enum):
    """How a tensor of state follows a change of Φ.

    COVECTOR: linear in the gradients; exact.
    VECTOR: linear in the updates; exact.
    POINT: parameters of another time, or an average of them; exact.
    SECOND_MOMENT: squares of gradients; exact where the gradient's coordinates are uncorrelated.
    MAGNITUDE: sizes of gradients, the roots of squares.
    UPDATE_SQUARE: squares of updates.
    UPDATE_SIZE: sizes of updates, the roots of squares.
    NUMBER: a number that depends on no basis; it stays.
    """

    COVECTOR = "covector"
    VECTOR = "vector"
    POINT = "point"
    SECOND_MOMENT = "second moment"
    MAGNITUDE = "magnitude"
    UPDATE_SQUARE = "square of updates"
    UPDATE_SIZE = "size of updates"
    NUMBER = "number"


Kinds = Mapping[str, Kind]

_ADAM: Kinds = {
    "step": Kind.NUMBER,
    "mu_product": Kind.NUMBER,
    "exp_avg": Kind.COVECTOR,
    "exp_avg_sq": Kind.SECOND_MOMENT,
    "max_exp_avg_sq": Kind.SECOND_MOMENT,
}
_MOMENTUM: Kinds = {"momentum_buffer": Kind.COVECTOR}
_BELIEF: Kinds = {
    **_ADAM,
    "exp_avg_var": Kind.SECOND_MOMENT,
    "max_exp_avg_var": Kind.SECOND_MOMENT,
    "exp_grad_norm": Kind.NUMBER,
}
_ADAN: Kinds = {**_ADAM, "exp_avg_diff": Kind.COVECTOR, "previous_grad": Kind.COVECTOR}
_SCHEDULE_FREE: Kinds = {
    "z": Kind.POINT,
    "x": Kind.POINT,
    "y": Kind.POINT,
    "exp_avg_sq": Kind.SECOND_MOMENT,
}
_ADAMAX: Kinds = {
    "step": Kind.NUMBER,
    "exp_avg": Kind.COVECTOR,
    "exp_inf": Kind.MAGNITUDE,
}
_ADADELTA: Kinds = {
    "step": Kind.NUMBER,
    "square_avg": Kind.SECOND_MOMENT,
    "acc_delta": Kind.UPDATE_SQUARE,
}
_RMSPROP: Kinds = {
    "step": Kind.NUMBER,
    "square_avg": Kind.SECOND_MOMENT,
    "momentum_buffer": Kind.VECTOR,
    "grad_avg": Kind.COVECTOR,
}
_LAMB: Kinds = {
    **_ADAM,
    **dict.fromkeys(("weight_norm", "adam_norm", "trust_ratio"), Kind.NUMBER),
}
_PRODIGY: Kinds = {**_ADAM, "s": Kind.COVECTOR, "p0": Kind.POINT}
_LOOKAHEAD: Kinds = {
    "slow_params": Kind.POINT,
    "slow_buffer": Kind.POINT,
    "slow_momentum": Kind.COVECTOR,
    "backup_params": Kind.POINT,
}

TABLE: Mapping[str, Kinds] = {
    "torch.SGD": _MOMENTUM,
    "torch.Muon": _MOMENTUM,
    "torch.Adam": _ADAM,
    "torch.AdamW": _ADAM,
    "torch.NAdam": _ADAM,
    "torch.RAdam": _ADAM,
    "torch.Adamax": _ADAMAX,
    "torch.Adagrad": {"step": Kind.NUMBER, "sum": Kind.SECOND_MOMENT},
    "torch.Adadelta": _ADADELTA,
    "torch.RMSprop": _RMSPROP,
    "torch.Rprop": {
        "step": Kind.NUMBER,
        "prev": Kind.COVECTOR,
        "step_size": Kind.UPDATE_SIZE,
    },
    "torch.ASGD": {
        "step": Kind.NUMBER,
        "eta": Kind.NUMBER,
        "mu": Kind.NUMBER,
        "ax": Kind.POINT,
    },
    **{
        f"schedulefree.{name}": _SCHEDULE_FREE
        for name in (
            "SGDScheduleFree",
            "SGDScheduleFreeClosure",
            "SGDScheduleFreeReference",
            "AdamWScheduleFree",
            "AdamWScheduleFreeClosure",
            "AdamWScheduleFreePaper",
            "AdamWScheduleFreeReference",
            "RAdamScheduleFree",
            "RAdamScheduleFreeClosure",
        )
    },
    **{
        f"pytorch_optimizer.{name}": kinds
        for names, kinds in (
            ("SGD QHM SignSGD", _MOMENTUM),
            ("SGDP", {"momentum": Kind.COVECTOR}),
            ("Lion Tiger Adam AdamW AdamC AdamP AdamS NAdam RAdam AdaBound", _ADAM),
            ("ADOPT AvaGrad Grams PAdam Yogi StableAdamW AdaGC", {**_ADAM, "gamma": Kind.NUMBER}),
            ("AdEMAMix", {**_ADAM, "exp_avg_slow": Kind.COVECTOR}),
            ("AdaBelief AdaNorm", _BELIEF),
            ("AdaMax", _ADAMAX),
            ("AdaDelta", _ADADELTA),
            ("RMSprop", _RMSPROP),
            ("Adan", _ADAN),
            ("DiffGrad", {**_ADAM, "previous_grad": Kind.COVECTOR}),
            ("MARS", {**_ADAM, "last_grad": Kind.COVECTOR}),
            ("Lamb", _LAMB),
            ("NovoGrad", {"moments": Kind.COVECTOR, "grads_ema": Kind.NUMBER}),
            ("PNM", {"pos_momentum": Kind.COVECTOR, "neg_momentum": Kind.COVECTOR}),
            ("Prodigy", _PRODIGY),
            ("Ranger", {**_ADAM, **_LOOKAHEAD}),
            ("Lookahead", _LOOKAHEAD),
            ("ScheduleFreeSGD ScheduleFreeAdamW ScheduleFreeRAdam", _SCHEDULE_FREE),
        )
        for name in names.split()
    },
    "heavyball.SGD": {"step": Kind.NUMBER, "heavyball_momentum_momentum": Kind.COVECTOR},
    "heavyball.Muon": {"step": Kind.NUMBER, "nesterov_ema_momentum": Kind.COVECTOR},
    "heavyball.AdamW": {
        "step": Kind.NUMBER,
        "update_by_adam_exp_avg": Kind.COVECTOR,
        "update_by_adam_exp_avg_sq": Kind.SECOND_MOMENT,
    },
}

REFUSED: Mapping[str, str] = {
    "torch.ZeroRedundancyOptimizer": "each rank holds the state of other layers; use the inner "
    "optimizer with DistributedDataParallel",
    "torch.SparseAdam": "whitened layers have dense gradients; use torch.optim.Adam",
    "pytorch_optimizer.LOMO": "it moves parameters inside the backward pass",
    "pytorch_optimizer.AdaLOMO": "it moves parameters inside the backward pass",
    "pytorch_optimizer.SaRA": "its mask chooses single weights, which whitening mixes",
    "pytorch_optimizer.SPAM": "its mask chooses single weights, which whitening mixes",
}
"""Optimizers that cannot run over whitened layers, and why."""

_NUMBERED = re.compile(r"_\d+$")
_HISTORY = ("torch.LBFGS", "pytorch_optimizer.LBFGS")


def names_of(optimizer: Optimizer) -> list[str]:
    """`package.Class` of an optimizer and of the classes that it comes from, nearest first."""
    return [
        f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(optimizer).__mro__
    ]


def kinds_of(optimizer: Optimizer) -> Kinds | None:
    """What the tensors of an optimizer's state mean, by name; None if it is not in the table."""
    return next((TABLE[name] for name in names_of(optimizer) if name in TABLE), None)


def kind_of(kinds: Kinds, name: str) -> Kind | None:
    """What a tensor means; heavyball numbers the parts of its chains, as in `exp_avg_0`."""
    return kinds.get(name) or kinds.get(_NUMBERED.sub("", name))


def has_history(optimizer: Optimizer) -> bool:
    """Whether the first parameter's state holds a history of all parameters, flat (L-BFGS)."""
    return any(name in _HISTORY for name in names_of(optimizer))
