"""Folds the categories of a table into the graph, so that a released file takes texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipelines.core.errors import UserError
from pipelines.systems.onnx.metadata import CATEGORIES
from pipelines.tasks.columns import FIRST, MISSING, OTHER, Column

LEAST_OPSET = 19
"""The first version of ONNX's operators that compares texts."""


def take_texts(model: ModelProto, columns: Sequence[Column]) -> None:
    """Replace the input of category codes by one of texts [batch, columns], in place.

    A text that is none of its column's categories counts as another one, the empty text as missing.

    Args:
        model: With an int64 input named `categories`, [batch, columns].
        columns: Those of categories, in the order of that input.

    Raises:
        UserError: If the opset cannot compare texts.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < LEAST_OPSET:
        raise UserError(
            f"export.opset = {opset}: a table with categories needs {LEAST_OPSET} or later"
        )
    graph = model.graph
    codes = f"{CATEGORIES}.codes"
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == CATEGORIES:
                node.input[place] = codes
    given = next(value for value in graph.input if value.name == CATEGORIES)
    given.type.tensor_type.elem_type = TensorProto.STRING
    nodes = [node for at, column in enumerate(columns) for node in _column(model, at, column)]
    parts = [f"{codes}.{at}" for at in range(len(columns))]
    nodes.append(helper.make_node("Concat", parts, [codes], axis=1))
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old])


def _column(model: ModelProto, at: int, column: Column) -> list[NodeProto]:
    """Return the nodes that make one column's codes [batch, 1]: OTHER plus what a match adds."""
    known = np.array(["", *column.categories], dtype=object)
    adds = np.array(
        [MISSING - OTHER, *(FIRST - OTHER + place for place in range(len(column.categories)))]
    ).astype(np.int64)
    name = f"{CATEGORIES}.{at}"

    def constant(kind: str, value: NDArray[Any]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}.{kind}"))
        return f"{name}.{kind}"

    cell, same, match, product, total = (
        f"{name}.{part}" for part in ("cell", "same", "match", "product", "total")
    )
    return [
        helper.make_node("Gather", [CATEGORIES, constant("place", np.array([at]))], [cell], axis=1),
        helper.make_node("Equal", [cell, constant("known", known[None])], [same]),
        helper.make_node("Cast", [same], [match], to=TensorProto.INT64),
        helper.make_node("Mul", [match, constant("adds", adds[None])], [product]),
        helper.make_node(
            "ReduceSum", [product, constant("axis", np.array([1]))], [total], keepdims=1
        ),
        helper.make_node(
            "Add", [total, constant("other", np.array([int(OTHER)]))], [f"{CATEGORIES}.codes.{at}"]
        ),
    ]
