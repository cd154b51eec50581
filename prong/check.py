"""Whether the function of a whitened model stays when its coordinates move.

A whitened layer computes the same function for every Φ. Code beside it that reads `weight` finds V
there, which depends on Φ. So Φ is moved at random, V and d along with it, and the outputs must stay
what they were. What does not stay is named, and everything is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from prong.convert import fold, unwrap
from prong.layers.base import Whitened
from prong.layers.put_on import altered, merge_is_wrong
from prong.linalg.projection import Phi
from prong.reasons import adapted_by_peft
from prong.refresh.collect import Forward, default_forward
from prong.refresh.modes import convert
from prong.refresh.repeated_passes import RepeatedPasses, evaluating, tolerance
from prong.refresh.tied_layers import TiedLayers, tied_layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from prong.distributed.ranks import Ranks

_BESIDE = "its weight is used beside its layer, where it is V and not W (or its bias, d and not b)"
_READ_BY_ADAPTER = "an adapter of peft around it reads its weight, which is V and not W"
_MERGE = (
    "an adapter of peft around it would add ΔW to V when it merges; fold before merging, or put "
    "the adapter on before whiten"
)
_TOGETHER = "outputs change when all whitened layers move, though no layer does it alone"
_FOLDED = "the folded model gives other outputs"
# So many times what a rounding of the weights does is still taken for rounding.
_ROUNDINGS = 6
_BLIND = 0.3
_Agree = Callable[[list[float]], list[float]]
_Change = Callable[[TiedLayers, "Tensor", torch.Generator], None]


@dataclass(frozen=True)
class LayerFinding:
    """A layer whose place in the model makes the model wrong.

    Attributes:
        name: qualified name; "model" where no single layer can be named.
        difference: the largest difference of an output relative to that output's largest entry when
            this layer alone moves; NaN where it was not measured.
        reason: the most probable reason.
    """

    name: str
    difference: float
    reason: str


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        difference: the largest relative difference of outputs when all layers move; NaN where it
            was not measured.
        folded: that of the folded model; NaN where it was not measured.
        tolerance: what is taken for rounding.
        layers: the layers that make the model wrong.
        inconclusive: why nothing is claimed about outputs; empty if something is.
    """

    difference: float
    folded: float
    tolerance: float
    layers: tuple[LayerFinding, ...] = ()
    inconclusive: str = ""

    @property
    def ok(self) -> bool:
        """Whether outputs were compared and nothing was found."""
        return not self.layers and not self.inconclusive

    def __str__(self) -> str:
        """One line for the whole and one for each layer."""
        lines = []
        if self.inconclusive:
            lines.append(f"nothing is claimed about outputs: {self.inconclusive}")
        elif self.layers:
            lines.append(f"{len(self.layers)} found:")
        else:
            lines.append(
                f"the function stays: largest relative difference {self.difference:.1e} "
                f"(rounding: {self.tolerance:.0e})"
            )
        for each in self.layers:
            measured = each.difference == each.difference
            size = f" (outputs differ by {each.difference:.1%})" if measured else ""
            lines.append(f"{each.name}: {each.reason}{size}")
        return "\n".join(lines)


def check(model: nn.Module, batch: Any, forward: Forward = default_forward) -> CheckResult:
    """Whether a whitened model computes the same function whatever its Φ, and folded too.

    In evaluation mode and without gradients, the batch is run as the model is (twice), with every Φ
    moved at random in a way that keeps each layer's function, and folded. If outputs differ, each
    layer is moved alone to find those that are the cause. Parameters, Φ, buffers, modes and random
    state are put back to the bit, also if the forward pass raises.

    Args:
        model: what `whiten` returned, also wrapped by `torch.compile` or DistributedDataParallel.
        batch: a batch of any content; its tensors are moved to the model's device.
        forward: how to run it, as for `Reparametrizer`.

    Returns:
        The result; `result.ok` says whether all is well, and `print(result)` what is not.

    Raises:
        ValueError: if the model has no whitened layer.
    """
    inner = unwrap(model)
    if not any(isinstance(module, Whitened) for module in inner.modules()):
        raise ValueError("model: it has no whitened layer; call prong.whiten first")
    return _examine(inner, batch, forward, lambda values: values, folding=True)


def refuse_wrong(model: nn.Module, batch: Any, forward: Forward, ranks: Ranks) -> None:
    """Refuse a model whose function would change with Φ; the folded copy is not tried.

    Every rank runs its own batch, and all of them end alike.

    Args:
        model: a whitened model without wrappers.
        batch: this rank's batch.
        forward: how to run it.
        ranks: the processes that call this together.

    Raises:
        ValueError: if something is wrong; it names the layers and the reasons.
        RuntimeError: if the forward pass raised on another rank.
    """
    device = next(m.mean.device for m in model.modules() if isinstance(m, Whitened))
    result = _examine(
        model, batch, forward, lambda values: ranks.together(values, device), folding=False
    )
    if result.layers:
        listed = "\n".join(f"  {line}" for line in str(result).splitlines()[1:])
        raise ValueError(
            f"model: it would not keep its function when it is reparametrised (prong.check):\n"
            f"{listed}"
        )


def _examine(
    model: nn.Module, batch: Any, forward: Forward, agree: _Agree, *, folding: bool
) -> CheckResult:
    put_on = {
        name: (module, reason)
        for name, module in model.named_modules()
        if isinstance(module, Whitened) and (reason := altered(module))
    }
    units = tied_layers_of(model, {module for module, _ in put_on.values()})
    nan = float("nan")
    found = [LayerFinding(name, nan, reason) for name, (_, reason) in put_on.items()]
    adapted = adapted_by_peft(model)
    merging = [u for u in units if any(e in adapted and merge_is_wrong(e) for e in u.layers)]
    found += [LayerFinding(unit.name, nan, _MERGE) for unit in merging]
    with evaluating(model):
        passes = RepeatedPasses(model, batch, forward)
        examination = _Examination(passes, units, agree)
        result = examination.result()
        if folding and not put_on and not result.layers and not result.inconclusive:
            result = _with_folded(result, passes)
    known = {each.name for each in found}
    for each in result.layers:
        layer = model.get_submodule(each.name) if each.name != "model" else model
        if each.name not in known:
            read = layer in adapted
            found.append(replace(each, reason=_READ_BY_ADAPTER) if read else each)
    return replace(result, layers=tuple(found))


class _Examination:
    """The passes of a check, with each decision taken by all ranks together."""

    def __init__(self, passes: RepeatedPasses, units: Sequence[TiedLayers], agree: _Agree) -> None:
        self._passes, self._units, self._agree = passes, units, agree

    def result(self) -> CheckResult:
        """Run as it is, again, and moved; then, if outputs differ, search."""
        measured = self._measured(self._plainly)
        again, moved = measured
        allowed = tolerance(self._passes.dtype, self._passes.device)
        nan = float("nan")
        if self._any(again > allowed):
            told = "two passes over the same batch give different outputs"
            return CheckResult(nan, nan, allowed, inconclusive=told)
        if not self._any(moved > allowed):
            return CheckResult(moved, nan, allowed)
        (rounding,) = self._measured(lambda: [self._with(_rounded, self._units)])
        allowed = max(allowed, _ROUNDINGS * rounding)
        if self._any(allowed > _BLIND):
            told = f"rounding the weights alone changes outputs by {rounding:.1%}"
            return CheckResult(moved, nan, allowed, inconclusive=told)
        if not self._any(moved > allowed):
            return CheckResult(moved, nan, allowed)
        alone = self._measured(lambda: [self._with(_moved, [unit]) for unit in self._units])
        guilty = self._agree([float(difference > allowed) for difference in alone])
        layers = tuple(
            LayerFinding(unit.name, difference, _BESIDE)
            for unit, difference, votes in zip(self._units, alone, guilty, strict=True)
            if votes
        )
        return CheckResult(
            moved, nan, allowed, layers or (LayerFinding("model", moved, _TOGETHER),)
        )

    def _plainly(self) -> list[float]:
        self._passes.first()
        return [self._passes.difference(), self._with(_moved, self._units)]

    def _with(self, change: _Change, units: Sequence[TiedLayers]) -> float:
        # Of its own: the generators of others stay where they are, and ranks draw the same.
        generator = torch.Generator().manual_seed(0)
        with _kept(units):
            for unit in units:
                change(unit, self._passes.sizes(unit.layers), generator)
            return self._passes.difference()

    def _measured(self, measure: Callable[[], list[float]]) -> list[float]:
        """What `measure` gives; if it raises on one rank, it raises on all."""
        error, measured = None, [0.0]
        try:
            measured = measure()
        except Exception as raised:
            error = raised
        failed = self._any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise RuntimeError("forward: it raised on another rank")
        return measured

    def _any(self, verdict: bool) -> bool:
        return bool(self._agree([float(verdict)])[0])


def _with_folded(result: CheckResult, passes: RepeatedPasses) -> CheckResult:
    difference = passes.difference_of(fold(passes.model))
    if difference <= result.tolerance:
        return replace(result, folded=difference)
    finding = LayerFinding("model", difference, _FOLDED)
    return replace(result, folded=difference, layers=(finding,))


@contextmanager
def _kept(units: Sequence[TiedLayers]) -> Iterator[None]:
    """Let Φ and the parameters of units be changed in place, and put both back."""
    parameters = [(p, p.detach().clone()) for unit in units for p in unit.parameters]
    layers = [layer for unit in units for layer in unit.layers]
    held = [(e, {name: e._buffers[name] for name in e.PHI}, e.activations) for e in layers]
    try:
        for layer, buffers, _ in held:
            for name, buffer in buffers.items():
                layer._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for parameter, value in parameters:
            parameter.detach().copy_(value)
        for layer, buffers, activations in held:
            layer._buffers.update(buffers)
            layer.activations = activations


def _moved(unit: TiedLayers, sizes: Tensor, generator: torch.Generator) -> None:
    """Another Φ, well conditioned against the present one, with V and d to match.

    A preconditioned layer holds W, which does not depend on Φ; but it may be converted at any time,
    and what reads its weight gets no natural gradient. It is moved as one that holds V.
    """
    if unit.layer.preconditioned:
        convert(unit, "fold")
    old = unit.wide_phi()
    mean = old.mean
    if unit.centred:
        drawn = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        # As large as the inputs: more would only be lost to rounding again.
        mean = mean + drawn.to(mean) * sizes.to(mean)
    output = None if old.output is None else _mixed(old.output, generator)
    unit.move(old, Phi(mean, _mixed(old.whitener, generator), output=output))


def _mixed(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """S (I − 2 v vᵀ/vᵀv) times a matrix, with ½ ≤ |S| ≤ 2 diagonal and of random sign."""
    groups, size = matrix.shape[:2]
    drawn = torch.rand(groups, size, 3, generator=generator, dtype=torch.float64)
    vector = (drawn[..., :1] - 0.5).to(matrix)
    vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    reflected = matrix - 2 * vector @ (vector.transpose(1, 2) @ matrix)
    # Never near 1, so that also a single feature moves.
    power = (0.5 + drawn[..., 1] / 2) * (2 * drawn[..., 2] - 1).sign()
    signs = torch.where(drawn[..., 2] * 4 % 2 < 1, 1.0, -1.0)
    mixed: Tensor = (signs * 2**power).to(matrix).unsqueeze(-1) * reflected
    return mixed


def _rounded(unit: TiedLayers, sizes: Tensor, generator: torch.Generator) -> None:
    """Move there and back, and round once more: what is left of it is rounding."""
    before, preconditioned = unit.wide_phi(), unit.layer.preconditioned
    _moved(unit, sizes, generator)
    unit.move(unit.wide_phi(), before)
    if preconditioned:
        convert(unit, "preconditioned")
    for parameter in unit.parameters:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, wide)
        step = torch.finfo(parameter.dtype).eps * noise
        parameter.copy_(parameter.to(wide) * (1 + step))
