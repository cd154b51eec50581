"""The inputs and outputs of a graph: names, types and shapes, as other programs ask for them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto, ValueInfoProto


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph.

    Attributes:
        name: Of it.
        kind: Type of its elements, as ONNX calls it: `UINT8`, `FLOAT`, `DOUBLE`, `STRING`.
        shape: Without the batch's axis, the first; None: any length.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]


def graph_values(content: bytes) -> tuple[list[GraphValue], list[GraphValue]]:
    """Return the inputs and the outputs of a model.

    Args:
        content: The file of a released model, checked before.
    """
    graph = onnx.load_model_from_string(content).graph
    return [_value(one) for one in graph.input], [_value(one) for one in graph.output]


def _value(found: ValueInfoProto) -> GraphValue:
    tensor = found.type.tensor_type
    shape = [one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim]
    return GraphValue(found.name, TensorProto.DataType.Name(tensor.elem_type), tuple(shape[1:]))
