"""Adds to a model's graph what scores how far an input lies from the training data.

Layers are found in the graph itself: the inputs of convolutions and of products with a weight. So
any network has them, also one of the user's own. Distances are computed in float32, as the layers
are; what follows, a handful of numbers for each example, in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from pipelines.systems.onnx.drift_card import DRIFT
from pipelines.systems.onnx.serialise import to_bytes

Array = NDArray[Any]
_TINY = 1e-12
"""Added under roots and logarithms."""


@dataclass(frozen=True)
class LayerInput:
    """What goes into one layer.

    Attributes:
        name: Of the tensor.
        shape: Without the batch: (features,), or with positions: (channels, …) of a convolution,
            (…, features) of a dense layer.
        axis: Of the features, counted with the batch: 1, or the last.
    """

    name: str
    shape: tuple[int, ...]
    axis: int

    @property
    def features(self) -> int:
        """Number of features at each position."""
        return self.shape[self.axis - 1]

    @property
    def positions(self) -> int:
        """Number of positions; 1: none."""
        return int(np.prod(self.shape)) // self.features


@dataclass(frozen=True)
class Whitener:
    """x ↦ U(x − c): what the training data have becomes white.

    Attributes:
        centre: c, [features].
        matrix: U, [features, features].
    """

    centre: Array
    matrix: Array


@dataclass(frozen=True)
class Tail:
    """How rare a value is among calibrated ones: −log of the share p of them that are larger.

    Between two of them the share is interpolated, so that rounding moves it by as little as it
    moves the value: p = (n − Σᵢ clip((s − vᵢ)/(vᵢ₊₁ − vᵢ), 0, 1))/(n + 1).

    Attributes:
        values: Calibrated ones v, sorted, [n], n ≥ 2.
        start: Their 90 % quantile; beyond it the share falls exponentially,
            −log p = log 10 + (s − start)/scale.
        scale: Mean excess over it, above 0.
    """

    values: Array
    start: float
    scale: float

    @property
    def gaps(self) -> Array:
        """Differences of neighbours [n − 1], above 0 also where values are equal."""
        return np.maximum(np.diff(self.values), 1e-9)


def layer_inputs(model: ModelProto) -> list[tuple[str, int]]:
    """Return name and axis of the features (1, or -1 for the last) of each layer's input."""
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    held |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:  # a weight may be transposed in the graph
        if node.op_type in ("Transpose", "Identity", "Cast") and node.input[0] in held:
            held.add(node.output[0])
    found: dict[str, int] = {}
    for node in graph.node:
        dense = node.op_type in ("Gemm", "MatMul")
        if (dense or node.op_type == "Conv") and node.input[1] in held - {node.input[0]}:
            found.setdefault(node.input[0], -1 if dense else 1)
    return list(found.items())


class DriftGraph:
    """A model's graph that grows; each method returns the name of a new tensor.

    Args:
        model: The released model; not changed.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.raw: str = model.graph.output[0].name
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"{DRIFT}.{self._count}"

    def _add(self, operator: str, *given: str, **attributes: Any) -> str:
        name = self._name()
        node = helper.make_node(operator, list(given), [name], name=name, **attributes)
        self.model.graph.node.append(node)
        return name

    def _constant(self, value: Any, dtype: Any = np.float64) -> str:
        name = self._name()
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype), name)
        self.model.graph.initializer.append(tensor)
        return name

    def _reduce(self, operator: str, given: str, axes: Sequence[int], keep: int = 0) -> str:
        return self._add(operator, given, self._constant(axes, np.int64), keepdims=keep)

    def pooled(self, layer: LayerInput) -> str:
        """Return the features [n, f]; of a layer with positions their mean and deviation, [n, 2f].

        The deviation over positions is √(mean (h − mean h)² + tiny).
        """
        if layer.positions == 1:
            return self._add("Flatten", layer.name, axis=1)
        axes = [at for at in range(1, len(layer.shape) + 1) if at != layer.axis]
        mean = self._reduce("ReduceMean", layer.name, axes, keep=1)
        off = self._add("Sub", layer.name, mean)
        variance = self._reduce("ReduceMean", self._add("Mul", off, off), axes, keep=1)
        tiny = self._constant([_TINY], np.float32)
        deviation = self._add("Sqrt", self._add("Add", variance, tiny))
        both = self._add("Concat", mean, deviation, axis=layer.axis)
        return self._add("Flatten", both, axis=1)

    def output_features(self) -> str:
        """Return the raw outputs as features [n, f]."""
        return self._add("Flatten", self.raw, axis=1)

    def _whitened(self, given: str, whitener: Whitener) -> str:
        off = self._add("Sub", given, self._constant(whitener.centre, np.float32))
        return self._add("MatMul", off, self._constant(whitener.matrix.T, np.float32))

    def log_distance(self, features: str, whitener: Whitener) -> str:
        """Return log ‖U(x − c)‖² [n] of features [n, f], the squared Mahalanobis distance."""
        return self._log(self._squared(self._whitened(features, whitener)))

    def _squared(self, given: str) -> str:
        return self._reduce("ReduceSum", self._add("Mul", given, given), [-1])

    def _log(self, given: str) -> str:
        wide = self._add("Cast", given, to=TensorProto.DOUBLE)
        return self._add("Log", self._add("Add", wide, self._constant([_TINY])))

    def log_distances_at_positions(self, layer: LayerInput, whitener: Whitener) -> tuple[str, str]:
        """Return log of mean and of maximum over positions of ‖U(h − c)‖², each [n]."""
        given = layer.name
        if layer.axis != len(layer.shape):
            order = [at for at in range(len(layer.shape) + 1) if at != layer.axis]
            given = self._add("Transpose", given, perm=[*order, layer.axis])
        squared = self._squared(self._whitened(given, whitener))
        axes = list(range(1, len(layer.shape)))
        mean, most = (self._reduce(f"Reduce{kind}", squared, axes) for kind in ("Mean", "Max"))
        return self._log(mean), self._log(most)

    def normalised(self, features: str) -> str:
        """Return x/‖x‖ of features [n, f]."""
        squared = self._reduce("ReduceSum", self._add("Mul", features, features), [-1], keep=1)
        tiny = self._constant([_TINY], np.float32)
        return self._add("Div", features, self._add("Sqrt", self._add("Add", squared, tiny)))

    def class_distance(self, features: str, centres: Array, matrix: Array) -> str:
        """Return min over classes k of ‖U(x − c_k)‖² [n], features [n, f] and centres [k, f]."""
        centre = centres.mean(axis=0)
        white = self._whitened(features, Whitener(centre, matrix))
        wide = self._add("Unsqueeze", white, self._constant([1], np.int64))
        off = self._add("Sub", wide, self._constant((centres - centre) @ matrix.T, np.float32))
        least = self._reduce("ReduceMin", self._squared(off), [-1])
        return self._add("Cast", least, to=TensorProto.DOUBLE)

    def relative(self, distance: str, features: str, whitener: Whitener) -> str:
        """Return a distance [n] less ‖U(x − c)‖² of all classes together."""
        background = self._squared(self._whitened(features, whitener))
        return self._add("Sub", distance, self._add("Cast", background, to=TensorProto.DOUBLE))

    def doubt(self) -> str:
        """Return log(1 − largest softmax of the raw outputs) [n]; it orders as 1 − maximum does."""
        wide = self._add("Cast", self.raw, to=TensorProto.DOUBLE)
        most = self._reduce("ReduceMax", self._add("Softmax", wide, axis=1), [1])
        rest = self._add("Sub", self._constant([1 + _TINY]), most)
        return self._add("Log", rest)

    def stacked(self, parts: Sequence[str]) -> str:
        """Return numbers [n] side by side, [n, parts]."""
        one = self._constant([1], np.int64)
        columns = [self._add("Unsqueeze", part, one) for part in parts]
        return self._add("Concat", *columns, axis=1)

    def joint(self, parts: Sequence[str], whitener: Whitener) -> str:
        """Return ‖U(t − μ)‖² [n] of numbers t, in float64."""
        off = self._add("Sub", self.stacked(parts), self._constant(whitener.centre))
        return self._squared(self._add("MatMul", off, self._constant(whitener.matrix.T)))

    def rarity(self, score: str, tail: Tail) -> str:
        """Return −log p [n], p the share of calibrated values above a score; see `Tail`."""
        one = self._constant([1], np.int64)
        wide = self._add("Unsqueeze", score, one)
        off = self._add("Sub", wide, self._constant(tail.values[None, :-1]))
        part = self._add("Div", off, self._constant(tail.gaps[None]))
        part = self._add("Min", part, self._constant([1.0]))
        part = self._add("Max", part, self._constant([0.0]))
        below = self._reduce("ReduceSum", part, [1])
        above = self._add("Sub", self._constant([float(len(tail.values))]), below)
        share = self._add("Div", above, self._constant([len(tail.values) + 1.0]))
        inside = self._add("Neg", self._add("Log", share))
        excess = self._add("Sub", score, self._constant([tail.start]))
        beyond = self._add("Div", excess, self._constant([tail.scale]))
        beyond = self._add("Add", beyond, self._constant([np.log(10.0)]))
        return self._add(
            "Where", self._add("Greater", excess, self._constant([0.0])), beyond, inside
        )

    def over(self, rarity: str, floor: float) -> str:
        """Return max(0, −log p − floor): rarities below the floor say nothing."""
        off = self._add("Sub", rarity, self._constant([floor]))
        return self._add("Max", off, self._constant([0.0]))

    def sum(self, first: str, second: str) -> str:
        """Return the sum of two scores."""
        return self._add("Add", first, second)

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """Return a model of these outputs, to be run here and not kept."""
        model = ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.extend(ValueInfoProto(name=name) for name in names)
        _prune(model, names)
        content: bytes = model.SerializeToString()
        return content

    def finished(self, score: str, metadata: Mapping[str, str]) -> bytes:
        """Return the drift graph: one output `drift` float32 [batch], equal bytes each time."""
        model = ModelProto()
        model.CopyFrom(self.model)
        last = helper.make_node("Cast", [score], [DRIFT], name=DRIFT, to=TensorProto.FLOAT)
        model.graph.node.append(last)
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(DRIFT, TensorProto.FLOAT, [batch]))
        _prune(model, [DRIFT])
        return to_bytes(model, metadata)


def _prune(model: ModelProto, outputs: Sequence[str]) -> None:
    """Remove nodes and weights that the outputs do not need, in place."""
    graph = model.graph
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
