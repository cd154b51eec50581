"""Files of variants: what is rounded and what stays exact, and equal bytes for equal files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipelines.data.prepared import load_split
from pipelines.gates.agreement import same_labels, same_values
from pipelines.systems.onnx.half_precision import half_precision
from pipelines.systems.onnx.operators import not_allowed
from pipelines.systems.onnx.quantised import batches_of, quantised
from pipelines.systems.onnx.runtime import OnnxModel, ort
from pipelines.variants.truncate import lower_ranks

if TYPE_CHECKING:
    from networks import Exported

pytest_plugins = ["networks"]
PIXELS, CLASSES = 16, 3


def model(kind: int, seed: int = 0) -> bytes:
    """A classifier of 16 pixels of a type: normalised, two dense layers, softmax."""
    draw = np.random.default_rng(seed)
    weights = {
        "levels": np.array(65535 if kind == TensorProto.UINT16 else 255, np.float32),
        "first": draw.normal(size=(PIXELS, 8)).astype(np.float32),
        "second": draw.normal(size=(8, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "levels"], ["shares"]),
        helper.make_node("MatMul", ["shares", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("images", kind, ["batch", PIXELS])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CLASSES])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(made, {"about": "dense"})
    return made.SerializeToString()


def asked(content: bytes, images: NDArray[Any]) -> list[NDArray[Any]]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(["logits", "probabilities"], {"images": images})
    return found


def images(dtype: type[np.generic], count: int = 64) -> NDArray[Any]:
    top = np.iinfo(dtype).max  # type: ignore[type-var]
    return np.random.default_rng(1).integers(0, top, (count, PIXELS), dtype, endpoint=True)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(TensorProto.UINT8, np.uint8), (TensorProto.UINT16, np.uint16)]
)
@pytest.mark.parametrize("made", ["fp16", "int8"])
def test_inputs_and_answers_stay_exact(kind: int, dtype: type[np.generic], made: str) -> None:
    content, given = model(kind), images(dtype)
    given[0] = np.iinfo(dtype).max  # type: ignore[type-var]  # beyond float16, of 16 bits
    if made == "fp16":
        found = half_precision(content)
    else:
        found = quantised(content, batches_of({"images": given}, 16))
    graph = onnx.load_model_from_string(found)
    assert not_allowed(graph) == []
    assert [(entry.key, entry.value) for entry in graph.metadata_props] == [("about", "dense")]
    before = onnx.load_model_from_string(content).graph
    for one, other in ((graph.graph.input, before.input), (graph.graph.output, before.output)):
        assert [(v.name, v.type) for v in one] == [(v.name, v.type) for v in other]
    types = {t.name: t.data_type for t in graph.graph.initializer}
    assert types["levels"] == TensorProto.FLOAT
    small = TensorProto.FLOAT16 if made == "fp16" else TensorProto.INT8
    assert list(types.values()).count(small) >= 2
    (logits, answers), (wanted, _) = asked(found, given), asked(content, given)
    assert np.abs(logits - wanted).max() < (0.01 if made == "fp16" else 0.1) * np.abs(wanted).max()
    # Probabilities follow from the logits, with nothing rounded between.
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answers, exact / exact.sum(axis=1, keepdims=True), atol=1e-6)
    assert len(np.unique(logits[:, 0])) > 32  # 64 images: not of a few levels


_ANEW = """
import hashlib, numpy as np, sys
sys.path[:0] = [{tests!r}]
from test_variant_files import TensorProto, images, model
from pipelines.systems.onnx.half_precision import half_precision
from pipelines.systems.onnx.quantised import batches_of, quantised
content = model(TensorProto.UINT8)
found = half_precision(content), quantised(content, batches_of({{"images": images(np.uint8)}}, 16))
print(*(hashlib.sha256(one).hexdigest() for one in found))
"""


@pytest.mark.slow
def test_other_processes_make_the_same_bytes() -> None:
    script = _ANEW.format(tests=str(Path(__file__).parent))
    said = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "ignore", "-c", script]
        said.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(said) == 1
    assert len(said.pop().split()) == 2


def test_what_multiplies_by_no_weights_cannot_be_quantised() -> None:
    made = onnx.load_model_from_string(model(TensorProto.UINT8))
    for node in made.graph.node:
        if node.op_type == "MatMul":
            node.op_type = "Add"
    with pytest.raises(ValueError, match="nothing to quantise"):
        quantised(made.SerializeToString(), iter(()))


def test_the_layer_with_the_most_weights_is_truncated_as_far_as_it_holds() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(64, 64), nn.Linear(64, 4)
    network = nn.Sequential(first, nn.ReLU(), last).eval()
    directions = torch.randn(3, 64, dtype=torch.float64)  # and a little of all others

    def some() -> torch.Tensor:
        noise = 1e-3 * torch.randn(100, 64, dtype=torch.float64)
        return torch.randn(100, 3, dtype=torch.float64) @ directions + noise

    examples = [some() for _ in range(10)]
    shown = examples[0].float()
    with torch.inference_mode():
        wanted = network(shown)

    def stays(smaller: nn.Module) -> bool:
        with torch.inference_mode():
            return bool((smaller(shown) - wanted).norm() < 0.05 * wanted.norm())

    smaller, ranks = lower_ranks(network, examples, stays)
    assert ranks[0] == "3 of 64 (0)"
    assert stays(smaller.float())
    assert first.weight.dtype == torch.float32  # the network itself is as it was
    # Where nothing may change, nothing gets smaller.
    assert lower_ranks(network, examples, lambda smaller: False)[1] == []


def test_the_gate_of_agreement() -> None:
    found = same_labels(3, 100, 0.02)
    assert (found.verdict, found.figure) == ("fail", 0.03)
    assert same_labels(2, 100, 0.02).passed
    theirs = np.random.default_rng(0).normal(5.0, 2.0, (1000, 2))
    near = same_values(theirs + np.array([0.0, 0.02]), theirs, 0.02)
    assert near.passed
    assert near.figure == pytest.approx(0.01, rel=0.1)
    assert not same_values(theirs + np.array([0.0, 0.1]), theirs, 0.02).passed
    assert not same_values(np.full_like(theirs, np.nan), theirs, 0.02).passed
    assert same_values(np.ones((5, 2)), np.ones((5, 2)), 0.0).passed  # no spread, no difference


@pytest.mark.slow
def test_a_quantised_network_answers_about_as_the_trained_one(
    exported: Exported, prepared: Path, tmp_path: Path
) -> None:
    path = exported("prong+")
    train, gate = load_split(prepared, "train"), load_split(prepared, "gate")
    batches = batches_of({"images": train.inputs[:512]}, 64)
    (tmp_path / "int8.onnx").write_bytes(quantised(path.read_bytes(), batches))
    (tmp_path / "fp16.onnx").write_bytes(half_precision(path.read_bytes()))
    before = OnnxModel.load(path, "cpu").raw(gate.inputs).argmax(axis=1)
    wrong = (before != gate.targets).mean()
    for name, limit in (("int8", 0.05), ("fp16", 0.0)):
        labels = OnnxModel.load(tmp_path / f"{name}.onnx", "cpu").raw(gate.inputs).argmax(axis=1)
        assert (labels != before).mean() <= limit
        assert (labels != gate.targets).mean() <= wrong + 0.02
