"""A model as the bytes of one ONNX file: equal models give equal bytes, on every machine."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ModelProto


def to_bytes(model: ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Return an exported model as the bytes of one checked ONNX file.

    Args:
        model: As the exporter made it; it is changed.
        metadata: Becomes the metadata of the file, in the order given.

    Raises:
        RuntimeError: If the graph still holds batch normalisation or functions.
        onnx.checker.ValidationError: If the model breaks a rule of ONNX.
    """
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    left = {node.op_type for node in model.graph.node} & {"BatchNormalization"}
    if left or model.functions:
        raise RuntimeError("the exporter left batch normalisation or functions in the graph")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _strip(model: ModelProto) -> None:
    """Remove data about this machine, its sources and its build of torch; keep the computation."""
    model.producer_name, model.producer_version, model.doc_string = "prong", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred shapes; the numbers of their symbols vary
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
