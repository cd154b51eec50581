"""Passes over one batch in evaluation mode that begin alike, and how far outputs differ."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prong.layers.base import Whitened
from prong.refresh.collect import to_device

if TYPE_CHECKING:
    from prong.refresh.collect import Forward

# Far above what rounding does in deep networks, far below what a wrong weight does.
_TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """The largest relative difference that is taken for rounding in outputs of a type."""
    rounded = torch.get_float32_matmul_precision() != "highest"
    if dtype == torch.float32 and device.type == "cuda":
        rounded = rounded or torch.backends.cudnn.allow_tf32
    if dtype == torch.float32 and rounded:
        # TF32 keeps as many bits as float16, "medium" no more than bfloat16.
        medium = torch.get_float32_matmul_precision() == "medium"
        dtype = torch.bfloat16 if medium else torch.float16
    return _TOLERANCES.get(dtype, _TOLERANCES[torch.bfloat16])


class RandomState:
    """The state of the generators from which a forward pass may draw."""

    def __init__(self) -> None:
        """Remember it."""
        self._cpu, self._python = torch.get_rng_state(), random.getstate()
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if started else []
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        # Only if somebody uses it: prong does not.
        numpy: Any = sys.modules.get("numpy.random")
        self._numpy = None if numpy is None else (numpy, numpy.get_state())

    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self._cpu)
        random.setstate(self._python)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        if self._numpy is not None:
            self._numpy[0].set_state(self._numpy[1])


class _Buffers:
    """A model's buffers but for Φ: which there are, and what they hold."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            (module, name, buffer, None if buffer is None else buffer.clone())
            for module in model.modules()
            for name, buffer in _others(module).items()
        ]
        self._names = {module: set(_others(module)) for module in model.modules()}

    def restore(self) -> None:
        for module, names in self._names.items():
            for name in set(_others(module)) - names:
                del module._buffers[name]
        for module, name, buffer, value in self._held:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.copy_(value)


class RepeatedPasses:
    """Runs a model on one batch again and again and compares what it gives with the first time.

    Compared are the floating tensors that the forward pass returns, in any nesting, and what the
    whitened layers give: a head that starts at zero would hide all that comes before it.
    """

    def __init__(self, model: nn.Module, batch: Any, forward: Forward) -> None:
        """Remember where each pass begins; call it inside `evaluating` only."""
        self.model, self.batch, self.forward = model, batch, forward
        self.layers = [module for module in model.modules() if isinstance(module, Whitened)]
        self.device = self.layers[0].mean.device
        self.dtype = torch.float64
        self._random, self._buffers = RandomState(), _Buffers(model)
        self._returned: list[Tensor] = []
        self._inside: list[Tensor] = []
        self._sizes: dict[nn.Module, Tensor] = {}

    def first(self) -> None:
        """Run, and remember what comes out."""
        handles = [layer.register_forward_pre_hook(self._measure) for layer in self.layers]
        try:
            returned, self._inside = self._run(self.model)
        finally:
            for handle in handles:
                handle.remove()
        self._returned = [tensor.clone() for tensor in returned]
        for tensor in (*self._returned, *self._inside, *(p.weight for p in self.layers)):
            if tensor.is_floating_point() and _bits(tensor.dtype) < _bits(self.dtype):
                self.dtype = tensor.dtype

    def difference(self) -> float:
        """Run again: the largest difference of a tensor, relative to its largest entry."""
        returned, inside = self._run(self.model)
        return largest_difference([*self._returned, *self._inside], [*returned, *inside])

    def difference_of(self, plain: nn.Module) -> float:
        """Likewise with another model in place of the first; only what is returned counts."""
        returned, _ = self._run(plain)
        return largest_difference(self._returned, returned)

    def sizes(self, layers: Sequence[Whitened]) -> Tensor:
        """How large the inputs of layers of one shape are, `[groups, in]`: root mean squares."""
        found = [self._sizes[layer] for layer in layers if layer in self._sizes]
        return torch.stack(found).amax(0) if found else torch.ones_like(layers[0].mean)

    def _measure(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, Whitened) and inputs:
            samples, _ = layer.samples(inputs[0].to(layer.mean.dtype))
            size = samples.square().mean(1).sqrt().nan_to_num(nan=0.0, posinf=0.0)
            self._sizes[layer] = torch.maximum(size, self._sizes.get(layer, size))

    def _run(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        inside: list[Tensor] = []

        def called(_: nn.Module, __: Any, output: Tensor) -> None:
            # A copy: an activation may be applied in place.
            inside.append(output.detach().clone())

        handles = [layer.register_forward_hook(called) for layer in self.layers]
        self._random.restore()
        try:
            returned = self.forward(model, _cloned(to_device(self.batch, self.device)))
        finally:
            for handle in handles:
                handle.remove()
            self._buffers.restore()
            self._random.restore()
        return list(_floating(returned, set())), inside


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, statistics and compilation, put back afterwards."""
    layers = [module for module in model.modules() if isinstance(module, Whitened)]
    modes = [(module, module.training) for module in model.modules()]
    held = [(e, e.moments, e.backward_moments, e.variances, e.aside) for e in layers]
    eager: AbstractContextManager[Any] = nullcontext()
    if "torch._dynamo" in sys.modules:
        # Every Φ would be one more graph. A stance is not offered without importing the compiler.
        eager = torch.compiler.set_stance("force_eager")
    try:
        # Not `model.eval()`: some modules do more there than to change their mode.
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.moments = layer.backward_moments = layer.variances = layer.aside = None
        with torch.no_grad(), eager:
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, moments, backward, variances, aside in held:
            layer.moments, layer.backward_moments = moments, backward
            layer.variances, layer.aside = variances, aside


def largest_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest |found − expected| of a tensor over its largest |expected|, the worst of all.

    Equal infinities and NaNs in the same place do not differ; others differ by infinity, and so do
    tensors of different shapes or number.
    """
    if [each.shape for each in expected] != [each.shape for each in found]:
        return float("inf")
    pairs = zip(expected, found, strict=True)
    worst = [_relative(left, right) for left, right in pairs if left.numel()]
    return max(map(float, worst), default=0.0)


def _relative(expected: Tensor, found: Tensor) -> Tensor:
    wide = torch.promote_types(expected.dtype, torch.float32)
    expected, found = expected.to(wide), found.to(wide)
    same = (expected == found) | (expected.isnan() & found.isnan())
    gap = (found - expected).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    largest = expected.abs().where(expected.isfinite(), 0).max()
    worst: Tensor = gap.where(~same, 0).max() / largest.where(largest > 0, 1)
    return worst


def _floating(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The floating and complex tensors in any nesting, in order."""
    if torch.is_tensor(value):
        if value.is_floating_point() or value.is_complex():
            plain = value.detach()
            if plain.is_nested:
                yield from plain.unbind()
            else:
                yield plain if plain.layout is torch.strided else plain.to_dense()
        return
    if value is None or isinstance(value, (str, bytes, int, float, type, nn.Module)):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Any = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, (list, tuple)):
        inside = value
    elif is_dataclass(value):
        inside = [getattr(value, field.name, None) for field in fields(value)]
    elif not callable(value):
        inside = list(getattr(value, "__dict__", {}).values())
    for each in inside:
        yield from _floating(each, seen)


def _cloned(batch: Any) -> Any:
    """A batch that a forward pass may change."""
    if torch.is_tensor(batch):
        return batch.clone()
    if isinstance(batch, Mapping):
        return {key: _cloned(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_cloned(value) for value in batch]
    return batch


def _others(module: nn.Module) -> dict[str, Tensor | None]:
    own = Whitened.PHI if isinstance(module, Whitened) else ()
    return {name: buffer for name, buffer in module._buffers.items() if name not in own}


def _bits(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps
