from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from classifiers import classifier_metadata, classifier_spec
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipelines.export.to_onnx import onnx_bytes
from pipelines.gates.measuring import batches
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.operators import ALLOWED, not_allowed
from pipelines.tasks.classification import Classification
from pipelines.training.network import build

SHA = "a" * 64
SCHEMAS = {
    schema.name: schema
    for schema in onnx.defs.get_all_schemas_with_history()
    if schema.domain == ""
}
"""Every operator of ONNX's default domain, its newest version."""


def card(size: int) -> OnnxMetadata:
    return classifier_metadata(("a", "b", "c"), size, 3, (0.5,) * 3, (0.1,) * 3, SHA, SHA, SHA)


class Mixed(nn.Module):
    """A convolutional network, a transformer and a table, as far as operators are concerned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.Hardswish())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GELU())
        self.attend = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.table = nn.Embedding(5, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images / 255.0)
        both = torch.cat([self.branch(found), nn.functional.avg_pool2d(found, 3, 1, 1)], 1)
        tokens = self.attend(both.flatten(2).transpose(1, 2))
        known = self.table(images.flatten(1).long().sum(1).remainder(5))
        one = nn.functional.one_hot(images[:, 0, 0, 0].long().clamp(max=15), 16)
        return self.out(torch.where(known > 0, tokens.mean(1), known) + one)


@pytest.mark.parametrize("name", ["mixed", "the main job's"])
def test_exports_of_classifiers_hold_nothing_else(name: str) -> None:
    if name == "mixed":
        content = onnx_bytes(Mixed().eval(), Classification(card(8).form), card(8), 20)
    else:
        spec = classifier_spec("bn", 28, 3, ("a", "b", "c"), (0.5,) * 3, (0.1,) * 3, 2, 4)
        content = onnx_bytes(build(spec).eval(), Classification(spec.form), card(28), 18)
    assert not_allowed(onnx.load_model_from_string(content)) == []


def test_no_operator_of_the_list_branches_draws_or_holds_a_graph() -> None:
    assert set(SCHEMAS) >= ALLOWED
    for name in ALLOWED:
        schema = SCHEMAS[name]
        kinds = {attribute.type.name for attribute in schema.attributes.values()}
        assert not kinds & {"GRAPH", "GRAPHS"}, name
        # Unknown: those that ONNX defines by other operators, of which none draws either.
        assert schema.node_determinism.name != "NonDeterministic" or schema.has_function, name
        outputs = {kind for output in schema.outputs for kind in output.types}
        assert any(kind.startswith("tensor(") for kind in outputs), name
    assert not ALLOWED & {"If", "Loop", "Scan", "SequenceMap", "RandomNormal", "Dropout"}


def model(*nodes: onnx.NodeProto) -> ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "graph", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def branch(name: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node(name, ["x"], ["y"])], "branch", [], [value])


def hidden() -> ModelProto:
    """A graph in an attribute that says it is a number."""
    node = helper.make_node("Relu", ["x"], ["y"])
    attribute = AttributeProto(name="alpha", type=AttributeProto.FLOAT, f=1.0)
    attribute.g.CopyFrom(branch("Loop"))
    node.attribute.append(attribute)
    return model(node)


def with_function() -> ModelProto:
    made = model(helper.make_node("Own", ["x"], ["y"], domain="own"))
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch("Scan"))
    opset = [helper.make_opsetid("", 20)]
    made.functions.append(helper.make_function("own", "Own", ["x"], ["y"], [inner], opset))
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def sparse() -> ModelProto:
    made = model(helper.make_node("Relu", ["x"], ["y"]))
    values = numpy_helper.from_array(np.ones(1, np.float32), "weight")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))
    return made


def of_sequences() -> ModelProto:
    made = model(helper.make_node("Relu", ["x"], ["y"]))
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    kind = helper.make_sequence_type_proto(inner)
    made.graph.value_info.append(helper.make_value_info("between", kind))
    return made


def for_training() -> ModelProto:
    made = model(helper.make_node("Relu", ["x"], ["y"]))
    made.training_info.add()
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: model(helper.make_node("RandomNormal", [], ["y"])), ["operator 'RandomNormal'"]),
        (
            lambda: model(helper.make_node("If", ["x"], ["y"], else_branch=branch("Loop"))),
            ["operator 'If'", "attribute 'else_branch'", "operator 'Loop'"],
        ),
        (
            lambda: model(helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft")),
            ["domain 'com.microsoft'"],
        ),
        (hidden, ["attribute 'alpha' of 'Relu'", "operator 'Loop'"]),
        (with_function, ["function of its own, 'Own'", "operator 'If'", "operator 'Scan'"]),
        (sparse, ["sparse weights"]),
        (of_sequences, ["type sequence, 'between'"]),
        (for_training, ["graph for training"]),
    ],
)
def test_what_is_not_on_the_list_is_found_wherever_it_is(
    make: Callable[[], ModelProto], said: list[str]
) -> None:
    found = not_allowed(onnx.load_model_from_string(make().SerializeToString()))
    assert all(any(part in line for line in found) for part in said), found


def test_every_model_is_asked_at_batches_that_its_bytes_decide() -> None:
    chosen = [batches(f"{n:064x}") for n in range(500)]
    for found in chosen:
        assert found[:33] == tuple(range(1, 34))
        assert len(set(found)) == 35
        assert found[-1] == 256
        assert 34 <= found[33] < 256
    assert len({found[33] for found in chosen}) == 222
    assert batches(SHA) == batches(SHA)
