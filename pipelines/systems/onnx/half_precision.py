"""A released model in half precision (float16), with the inputs and outputs that it had."""

from __future__ import annotations

import warnings

from onnx import ModelProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipelines.systems.onnx.inner_nodes import inner_nodes, name_nodes
from pipelines.systems.onnx.model_file import parse
from pipelines.systems.onnx.serialise import to_bytes

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
_KEPT_VALUE = "_cast_to_fp16"


def half_precision(content: bytes) -> bytes:
    """Return a model whose network computes in float16; equal bytes in, equal bytes out.

    Weights beyond float16's range become its largest number; so small ones become its smallest.

    Args:
        content: A released model.

    Raises:
        ValueError: If the bytes are no model.
    """
    model = parse(content)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    name_nodes(model.graph)
    inner = set(inner_nodes(model))
    kept = [node.name for node in model.graph.node if node.name not in inner]
    with warnings.catch_warnings():
        # It tells of each weight that does not fit; the gates tell what that costs.
        warnings.filterwarnings("ignore", ".*will be truncated", UserWarning)
        found = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[], node_block_list=kept
        )
    _join_casts(found)
    _in_order(found)
    return to_bytes(found, metadata)


def _casts(model: ModelProto, kind: int) -> dict[str, str]:
    """Return what casts to a type make → what they are given."""
    return {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)
    }


def _join_casts(model: ModelProto) -> None:
    """Take away casts of float32 to float16 and back: the converter puts them between kept nodes.

    They would round what is to stay exact, and make infinity of a 16-bit pixel.
    """
    graph = model.graph
    # A kept node's own value, in float32, has this name; what others read is its cast.
    down = {
        made: given for made, given in _casts(model, _HALF).items() if given.endswith(_KEPT_VALUE)
    }
    back = {made: down[given] for made, given in _casts(model, _SINGLE).items() if given in down}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in outputs and node.output[0] in back:
            node.op_type = "Identity"  # an output keeps its name
            node.input[0] = back[node.output[0]]
            del node.attribute[:]
        for place, name in enumerate(node.input):
            node.input[place] = back.get(name, name)
    while True:
        used = outputs | {name for node in graph.node for name in node.input}
        spare = [node for node in graph.node if not used & set(node.output)]
        if not spare:
            return
        for node in spare:
            graph.node.remove(node)


def _in_order(model: ModelProto) -> None:
    """Put the nodes into an order in which each follows what it needs."""
    graph = model.graph
    waiting = list(graph.node)
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    ordered = []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        if not ready:
            raise ValueError("the converted graph has a circle")
        for node in ready:
            known |= set(node.output)
        ordered += ready
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]
    copies = [type(node).FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)
