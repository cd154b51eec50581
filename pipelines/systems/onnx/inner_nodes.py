"""Which nodes of a released model are its network: between reading the input and the answers.

What reads the input (a cast, the normalisation, the texts of a table) stays as exact as it is, and
so does what makes answers of raw outputs: there precision costs nothing and is needed. 16-bit
pixels do not fit into half precision, and probabilities in 256 levels would tie.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, ModelProto, NodeProto

PRODUCTS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention"),
        *("GRU", "LSTM", "RNN"),
    }
)
"""Operators that multiply by weights: the network begins with the first."""


def name_nodes(graph: GraphProto) -> None:
    """Give each node a name of its own, in place: the converters know nodes by name."""
    for place, node in enumerate(graph.node):
        node.name = f"node.{place}"


def inner_nodes(model: ModelProto) -> list[str]:
    """Return the names of a network's nodes: those from the first product on, up to the raw output.

    Args:
        model: As this project releases it, each node with a name of its own; its nodes are in
            order, and its first output is the raw one.
    """
    graph = model.graph
    behind = _behind_products(graph.node)
    needed = {graph.output[0].name}
    found = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            if behind & set(node.output):
                found.append(node.name)
    return found[::-1]


def _behind_products(nodes: Iterable[NodeProto]) -> set[str]:
    """Return the values that a product makes, or that depend on one."""
    found: set[str] = set()
    for node in nodes:
        if node.op_type in PRODUCTS or found & set(node.input):
            found |= set(node.output)
    return found
