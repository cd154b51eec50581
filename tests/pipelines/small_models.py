"""Released files of every kind that are made in a moment and whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from classifiers import classifier_metadata
from finished_checkout import write_model
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.tasks.columns import Column
from pipelines.tasks.form import RECONSTRUCTION, REGRESSION, Form, Value

SIZE, CLASSES = 4, ("cat", "dog", "ürsus")
COLUMNS = (
    Column("age", "number", 40.0, 20.0, gaps=True),
    Column("town", "category", categories=("Bonn", "Köln")),
)
_DIGEST = "0123456789abcdef" * 4


def classifier(path: Path, size: int = SIZE, seed: int = 0) -> Path:
    """A linear classifier of grey images."""
    weight = np.random.default_rng(seed).normal(size=(size * size + 1, len(CLASSES)))
    card = classifier_metadata(CLASSES, size, 1, (0.25,), (0.5,), _DIGEST, _DIGEST, _DIGEST)
    write_model(path, (weight / 255).astype(np.float32), card)
    return path


def regression(path: Path) -> Path:
    """A model of rows that answers age + 1, and NaN where the age is missing."""
    form = Form(REGRESSION, values=(Value("price", 0.0, 1.0),), columns=COLUMNS)
    nodes = [
        helper.make_node("Add", ["numbers", "one"], ["prices"]),
        helper.make_node("Cast", ["prices"], ["raw"], to=TensorProto.FLOAT),
    ]
    inputs = [("numbers", TensorProto.DOUBLE, [1]), ("categories", TensorProto.STRING, [1])]
    outputs = [("raw", TensorProto.FLOAT, [1]), ("prices", TensorProto.DOUBLE, [1])]
    one = numpy_helper.from_array(np.ones((1, 1)), "one")
    _save(path, form, ("raw", "prices"), (1,), (nodes, inputs, outputs, [one]))
    return path


def reconstruction(path: Path) -> Path:
    """A model of images that answers with grey 100 everywhere."""
    form = Form(RECONSTRUCTION, size=SIZE, channels=1, mean=(0.0,), deviation=(1.0,))
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "zero"], ["normalised"]),
        helper.make_node("Add", ["normalised", "grey"], ["reconstruction"]),
    ]
    shape = [1, SIZE, SIZE]
    inputs = [("images", TensorProto.UINT8, shape)]
    outputs = [(name, TensorProto.FLOAT, shape) for name in ("normalised", "reconstruction")]
    given = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("zero", 0), ("grey", 100))
    ]
    names = ("normalised", "reconstruction")
    _save(path, form, names, tuple(shape), (nodes, inputs, outputs, given))
    return path


def _save(
    path: Path, form: Form, outputs: tuple[str, str], shape: tuple[int, ...], graph: Sequence[Any]
) -> None:
    nodes, *signatures, given = graph
    card = OnnxMetadata(form, outputs, shape, _DIGEST, _DIGEST, _DIGEST)
    values = [
        [helper.make_tensor_value_info(n, kind, ["batch", *dims]) for n, kind, dims in signature]
        for signature in signatures
    ]
    made = helper.make_graph(nodes, "small", *values, given)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, card.metadata())
    path.write_bytes(model.SerializeToString())


def write_images(folder: Path, count: int, size: int = SIZE, seed: int = 1) -> np.ndarray:
    """Write grey PNG files `0000.png` …; return their pixels [n, 1, size, size]."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, 1, size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    for at, one in enumerate(pixels):
        Image.fromarray(one[0]).save(folder / f"{at:04d}.png")
    return pixels
