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
        RuntimeError: If the graph holds functions, or batch normalisation as in training.
        onnx.checker.ValidationError: If the model breaks a rule of ONNX.
    """
    _strip(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    if model.functions or any(_trains(node) for node in model.graph.node):
        raise RuntimeError("the exporter left functions or a network in training mode in the graph")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _trains(node: onnx.NodeProto) -> bool:
    """Say whether batch normalisation takes a batch's own statistics.

    Behind a dense or convolutional layer the exporter folds it away; elsewhere it stays, as a
    fixed scale and shift.
    """
    return node.op_type == "BatchNormalization" and any(
        attribute.name == "training_mode" and attribute.i for attribute in node.attribute
    )


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
