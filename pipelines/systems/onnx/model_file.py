"""A released model as a file: read and checked without running it or looking beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from pipelines.core.errors import UserError
from pipelines.systems.onnx.metadata import (
    CATEGORIES,
    IMAGES,
    LARGEST_FILE,
    NUMBERS,
    OnnxMetadata,
    input_names,
)
from pipelines.tasks.form import Form

__all__ = [
    "ModelProto",
    "all_nodes",
    "checked_card",
    "input_signatures",
    "load",
    "opset",
    "outside",
    "parse",
    "read_checked",
    "signature",
    "tensor_values",
]


def _inner(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Yield the graphs that nodes hold as attributes, and those within them."""
    for node in nodes:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield inner
                    yield from _inner(inner.node)


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    yield model.graph
    yield from _inner(model.graph.node)
    for function in model.functions:
        yield from _inner(function.node)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes of all graphs and functions of a model, those within others included."""
    for holder in (*_graphs(model), *model.functions):
        yield from holder.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor a model holds: initializers, sparse ones, and those in attributes."""
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def tensor_values(model: ModelProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and values of every tensor that a model holds in its file.

    A tensor without a name is called by its place. Types that numpy does not have, such as
    bfloat16, come as those of `ml_dtypes`.

    Args:
        model: None of its tensors lies outside the file.
    """
    for place, tensor in enumerate(_tensors(model)):
        if tensor.data_type != TensorProto.UNDEFINED:  # else an attribute that holds no tensor
            yield tensor.name or f"tensor {place}", numpy_helper.to_array(tensor)


def outside(model: ModelProto) -> list[tuple[str, str]]:
    """Return the tensors that lie outside the file: name, and where, as the model says."""
    return [
        (tensor.name, next((e.value for e in tensor.external_data if e.key == "location"), ""))
        for tensor in _tensors(model)
        if tensor.external_data or tensor.data_location
    ]


def signature(value: ValueInfoProto) -> tuple[str, int, list[int | None]]:
    """Return name, element type and shape (None: any) of a graph's input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return value.name, tensor.elem_type, shape


def parse(content: bytes) -> ModelProto:
    """Return the model that some bytes are; its external data, if any, is not read.

    Raises:
        ValueError: If they are not an ONNX model, or are larger than one file may be.
    """
    if len(content) > LARGEST_FILE:
        raise ValueError("larger than 2 GB, the limit of one ONNX file")
    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        raise ValueError("not an ONNX model, or a damaged one") from None


def opset(content: bytes) -> int:
    """Return the version of ONNX's operators that a model uses.

    Raises:
        ValueError: If the bytes are no model, or it uses none of them.
    """
    for entry in parse(content).opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ValueError("it uses no version of ONNX's own operators")


def load(path: Path) -> ModelProto:
    """Return the model that a file of this project holds; nothing is checked."""
    return onnx.load(str(path))


def input_signatures(form: Form) -> list[tuple[str, int, list[int | None]]]:
    """Return name, element type and shape (None: any) of the inputs of a model of this form."""
    pixels = TensorProto.UINT8 if form.bits == 8 else TensorProto.UINT16
    kinds = {
        IMAGES: (pixels, list(form.input_shape)),
        NUMBERS: (TensorProto.DOUBLE, [len(form.numbers)]),
        CATEGORIES: (TensorProto.STRING, [len(form.categories)]),
    }
    return [(name, kinds[name][0], [None, *kinds[name][1]]) for name in input_names(form)]


def _signatures(card: OnnxMetadata) -> list[tuple[str, int, list[int | None]]]:
    """Return the inputs that a graph must have, and its raw output."""
    raw = card.outputs[0], TensorProto.FLOAT, [None, *card.output_shape]
    return [*input_signatures(card.form), raw]


def _answers(found: tuple[str, int, list[int | None]], name: str) -> bool:
    return found[0] == name and found[1] in (TensorProto.FLOAT, TensorProto.DOUBLE)


def checked_card(model: ModelProto) -> OnnxMetadata:
    """Return what a model says about itself, after its inputs and outputs were held to it.

    Raises:
        ValueError: If the metadata are not a card of this project, or do not fit the graph.
    """
    entries = [entry.key for entry in model.metadata_props]
    try:
        if len(set(entries)) != len(entries):
            raise ValueError("a metadata entry occurs twice")
        card = OnnxMetadata.parse({entry.key: entry.value for entry in model.metadata_props})
    except ValueError as error:
        raise ValueError(f"not a model released by this project: {error}") from None
    found = [signature(value) for value in (*model.graph.input, *model.graph.output)]
    wanted = _signatures(card)
    # What users read has the type and shape that the task gives it.
    if not found or found[:-1] != wanted or not _answers(found[-1], card.outputs[1]):
        raise ValueError(
            f"inputs and outputs are {found}; its metadata asks for {wanted} and {card.outputs[1]}"
        )
    return card


def read_checked(path: Path) -> tuple[bytes, OnnxMetadata]:
    """Return a model's bytes and card, both checked; nothing outside the file is touched.

    Raises:
        UserError: If the file is unreadable or not one whole model of this project.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than 2 GB, the limit of one ONNX file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = parse(content)
        if away := outside(model):
            raise ValueError(
                f"refused: {len(away)} tensors lie outside the file, first {away[0][0]!r}; "
                "a released model is one file"
            )
        return content, checked_card(model)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
