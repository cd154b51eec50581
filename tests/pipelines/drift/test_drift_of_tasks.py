"""Every task and network has a drift graph, tables too; an odd network holds up nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from small_network import Small, data, released
from torch import nn

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.data.prepared import Split, load_card, load_split
from pipelines.drift.candidates import auroc
from pipelines.drift.fit_drift import fit
from pipelines.drift.synthetic_shifts import shifted
from pipelines.export.to_onnx import _export_drift, export, folded, metadata, onnx_bytes
from pipelines.systems.onnx import model_file
from pipelines.systems.onnx.drift_card import DriftCard
from pipelines.systems.onnx.drift_model import DriftModel
from pipelines.tasks.columns import FIRST, Column
from pipelines.tasks.form import CLASSIFICATION, REGRESSION, Form, Value
from pipelines.tasks.named import task_of
from pipelines.training.network import NetworkSpec, build
from pipelines.training.row_features import RowFeatures

if TYPE_CHECKING:
    from networks import Trained

pytest_plugins = ["networks"]
COLUMNS = (
    Column("age", "number", 40.0, 10.0, gaps=True),
    Column("income", "number", 3.0, 0.5),
    Column("town", "category", categories=("A", "B", "C")),
)
ROWS = {
    CLASSIFICATION: Form(CLASSIFICATION, classes=("no", "yes"), columns=COLUMNS),
    REGRESSION: Form(REGRESSION, values=(Value("price", 2.0, 1.5),), columns=COLUMNS),
}


class Rows(nn.Module):
    """Two layers on a row's features."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = RowFeatures(COLUMNS)
        width = sum(column.features for column in COLUMNS)
        self.body = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, outputs))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(self.features(rows).float())
        return found


def _rows(count: int, seed: int) -> NDArray[np.float64]:
    random = np.random.default_rng(seed)
    age = random.normal(40, 10, count)
    income = 3 + 0.05 * (age - 40) + random.normal(0, 0.1, count)  # the two go together
    town = FIRST + random.integers(0, 3, count)
    age[random.random(count) < 0.1] = np.nan
    return np.stack([age, income, town], axis=1)


@pytest.mark.parametrize("task", [CLASSIFICATION, pytest.param(REGRESSION, marks=pytest.mark.slow)])
def test_rows_have_a_drift_graph(task: str, tmp_path: Path) -> None:
    form = ROWS[task]
    made = task_of(form, tmp_path)
    spec = NetworkSpec(form, made.output_shape, "sgd", 1, 1)
    card = metadata(spec, made, "a" * 64, "b" * 64, "c" * 64)
    content = onnx_bytes(Rows(made.output_shape[0]).eval(), made, card, 20)
    rows = _rows(500, 0)
    targets = (rows[:, 1] > 3).astype(np.int64) if form.classes else rows[:, 1:2]
    train = Split(rows, targets, tuple(f"{at:064x}" for at in range(len(rows))))
    path = tmp_path / "drift.onnx"
    path.write_bytes(fit(content, train, [_rows(200, 1)]))
    drift = DriftModel.load(path)
    fresh, moved = _rows(200, 2), _rows(200, 3)
    moved[:, 0] += 40
    assert auroc(drift.scores(fresh), drift.scores(moved)) > 0.9
    assert len(drift.card.reference_labels) == (100 if form.classes else 0)
    assert {len(answer) for answer in drift.card.reference_answers} == {max(1, len(form.classes))}
    names = {name for name, _ in shifted(fresh, form)}
    assert {"noise", "moved", "independent columns", "random categories"} <= names


def test_shifts_are_the_same_each_time_and_of_the_datas_type() -> None:
    images = data().held_out
    form = Form(CLASSIFICATION, classes=("a",), size=8, channels=1, mean=(0,), deviation=(1,))
    deep = replace(form, bits=16)
    for given, of in ((images, form), (images.astype(np.uint16) * 257, deep)):
        first, again = (dict(shifted(given, of)) for _ in range(2))
        assert len(first) == 9
        for name, changed in first.items():
            assert changed.dtype == of.dtype
            assert changed.shape == given.shape
            assert not np.array_equal(changed, given)
            np.testing.assert_array_equal(changed, again[name])


def test_a_network_without_layers_is_scored_by_its_outputs_alone() -> None:
    examples = data()
    model = model_file.parse(released(Small()))
    del model.graph.node[2:8]  # all but Cast, Div and Softmax
    flat = helper.make_node("Flatten", ["scaled"], ["flat"])
    pixels = helper.make_node("Gather", ["flat", "places"], ["logits"], axis=1)
    softmax = model.graph.node.pop()
    model.graph.node.extend([flat, pixels, softmax])
    places = helper.make_tensor("places", TensorProto.INT64, [3], [10, 20, 30])
    model.graph.initializer.append(places)
    content = fit(model.SerializeToString(), examples.train, [examples.held_out])
    found = read_drift_card(content)
    assert set(found.candidates) >= {"softmax", "mahalanobis"}


def read_drift_card(content: bytes) -> DriftCard:
    model = model_file.parse(content)
    return DriftCard.parse({entry.key: entry.value for entry in model.metadata_props})


@pytest.mark.slow
def test_what_cannot_be_scored_is_said_and_the_model_is_exported_all_the_same(
    trained: Trained, prepared: Path, small: Params, tmp_path: Path
) -> None:
    out, drift = tmp_path / "model.onnx", tmp_path / "drift.onnx"
    assert export(trained("prong+"), prepared, small, tmp_path, out, drift=drift) == []
    found = DriftModel.load(drift)
    assert found.card.data_hash == load_card(prepared).data_hash
    # Few are held out, and the network has learnt little: noise is seen none the less.
    test = load_split(prepared, "test").inputs
    noise = np.random.default_rng(0).integers(0, 256, test.shape, dtype=np.uint8)
    assert auroc(found.scores(test), found.scores(noise)) > 0.95
    empty = Split(test[:0], np.zeros(0, np.int64), ())
    with pytest.raises(UserError, match="there are no training examples"):
        fit(out.read_bytes(), empty, [test])
    (warning,) = _export_drift(b"no model", prepared, drift)
    assert warning == (
        "no drift graph, drift will not be scored: not an ONNX model, or a damaged one"
    )
    assert drift.read_bytes() == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", ["cnn", "mlp", "vgg", "resnet", "inception", "vit", "autoencoder"]
)
def test_every_network_of_the_zoo_has_a_drift_graph(
    network: str, prepared: Path, small: Params, tmp_path: Path
) -> None:
    form = load_card(prepared).form
    if network == "autoencoder":
        form = replace(form, task="reconstruction", classes=())
    task = task_of(form, tmp_path)
    torch.manual_seed(0)
    spec = NetworkSpec(form, task.output_shape, "prong+", 8, 32, network)
    plain = folded(build(spec).eval())
    content = onnx_bytes(plain, task, metadata(spec, task, "a" * 64, "b" * 64, "c" * 64), 20)
    train, test = load_split(prepared, "train"), load_split(prepared, "test").inputs
    if not form.classes:
        train = Split(train.inputs, np.zeros((len(train.inputs), 0)), train.hashes)
    path = tmp_path / "drift.onnx"
    path.write_bytes(fit(content, train, [test]))
    drift = DriftModel.load(path)
    assert {"layers", "mahalanobis", "mahalanobis++"} <= set(drift.card.candidates)
    noise = np.random.default_rng(0).integers(0, 256, test.shape, dtype=np.uint8)
    assert auroc(drift.scores(test), drift.scores(noise)) > 0.95
