"""Small released models of every kind, made without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from classifiers import classifier_form
from finished_checkout import write_model
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipelines.systems.onnx.category_inputs import take_texts
from pipelines.systems.onnx.metadata import CLASSIFIER, OnnxMetadata
from pipelines.tasks.columns import Column
from pipelines.tasks.form import Form, Value

DIGEST = "0123456789abcdef" * 4
CLASSES = ("cat", "dog", "ürsus")
COLUMNS = (
    Column("age", "number", 40.0, 10.0, True),
    Column("city", "category", categories=("Bern", "Zürich")),
    Column("height", "number", 1.7, 0.2),
)


def card(form: Form, outputs: tuple[str, str], shape: tuple[int, ...]) -> OnnxMetadata:
    return OnnxMetadata(form, outputs, shape, DIGEST, DIGEST, DIGEST)


def classifier(
    path: Path, size: int = 4, classes: tuple[str, ...] = CLASSES, seed: int = 0
) -> Path:
    """A linear classifier of grey images."""
    form = classifier_form(classes, size, 1, (0.25,), (0.5,))
    draw = np.random.default_rng(seed)
    weight = draw.normal(size=(size * size + 1, len(classes))).astype(np.float32) / 100
    write_model(path, weight, card(form, CLASSIFIER, (len(classes),)))
    return path


def _save(model: ModelProto, described: OnnxMetadata, path: Path) -> Path:
    helper.set_model_props(model, described.metadata())
    path.write_bytes(model.SerializeToString())
    return path


def _model(nodes: list, name: str, inputs: list, outputs: list, held: list) -> ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def table(path: Path) -> Path:
    """Predicts one value, in FP64, from numbers and a category."""
    form = Form("regression", values=(Value("price", 10.0, 2.0),), columns=COLUMNS)
    kinds = helper.make_tensor_value_info
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["gap"]),
        helper.make_node("Where", ["gap", "zero", "numbers"], ["there"]),
        helper.make_node("Cast", ["there"], ["small"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["categories"], ["codes"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["small", "codes"], ["row"], axis=1),
        helper.make_node("MatMul", ["row", "weight"], ["raw"]),
        helper.make_node("Cast", ["raw"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "two"], ["answers"]),
    ]
    held = [
        numpy_helper.from_array(np.array([[1.0], [3.0], [0.5]], np.float32), "weight"),
        numpy_helper.from_array(np.array(0.0), "zero"),
        numpy_helper.from_array(np.array(2.0), "two"),
    ]
    made = _model(
        nodes,
        "table",
        [
            kinds("numbers", TensorProto.DOUBLE, ["batch", 2]),
            kinds("categories", TensorProto.INT64, ["batch", 1]),
        ],
        [
            kinds("raw", TensorProto.FLOAT, ["batch", 1]),
            kinds("answers", TensorProto.DOUBLE, ["batch", 1]),
        ],
        held,
    )
    take_texts(made, [COLUMNS[1]])
    return _save(made, card(form, ("raw", "answers"), (1,)), path)


def reconstruction(path: Path) -> Path:
    """Gives 16-bit images of two channels back, as FP32."""
    form = Form(
        "reconstruction", size=3, channels=2, mean=(0.4, 0.6), deviation=(0.2, 0.3), bits=16
    )
    kinds = helper.make_tensor_value_info
    shape = ["batch", 2, 3, 3]
    made = _model(
        [
            helper.make_node("Cast", ["images"], ["raw"], to=TensorProto.FLOAT),
            helper.make_node("Identity", ["raw"], ["answers"]),
        ],
        "again",
        [kinds("images", TensorProto.UINT16, shape)],
        [kinds(name, TensorProto.FLOAT, shape) for name in ("raw", "answers")],
        [],
    )
    return _save(made, card(form, ("raw", "answers"), (2, 3, 3)), path)


def fragile(path: Path) -> Path:
    """A classifier of one pixel that the runtime cannot run on the value 255, nor answer 254."""
    form = classifier_form(CLASSES, 1, 1, (0.25,), (0.5,))
    rows = np.zeros((255, 3), np.float32)
    rows[:, 0] = np.arange(255) / 255
    rows[254] = np.inf
    kinds = helper.make_tensor_value_info
    made = _model(
        [
            helper.make_node("Cast", ["images"], ["wide"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["wide", "flat"], ["places"]),
            helper.make_node("Gather", ["rows", "places"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "fragile",
        [kinds("images", TensorProto.UINT8, ["batch", 1, 1, 1])],
        [kinds(name, TensorProto.FLOAT, ["batch", 3]) for name in ("logits", "probabilities")],
        [
            numpy_helper.from_array(np.array([-1]), "flat"),
            numpy_helper.from_array(rows, "rows"),
        ],
    )
    return _save(made, card(form, CLASSIFIER, (3,)), path)
