from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.core.errors import UserError
from pipelines.systems.onnx.category_inputs import take_texts
from pipelines.tasks import columns as of
from pipelines.tasks.columns import FIRST, MISSING, OTHER, Column
from pipelines.training.row_features import LARGEST, RowFeatures
from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.by_name import ZOO, make

COLUMNS = (
    Column("town", "category", gaps=True, categories=("Bonn", "Köln", "東京")),
    Column("age", "number", 1e9, 0.25, gaps=True),
    Column("sex", "category", categories=("f", "m")),
    Column("height", "number", 170.0, 10.0),
    Column("since", "number", 2e4, 300.0, gaps=True, dates=True),
)

NUMBER = st.builds(
    Column,
    name=st.just("n"),
    kind=st.just("number"),
    mean=st.floats(-1e12, 1e12),
    deviation=st.floats(1e-6, 1e12),
    gaps=st.booleans(),
)
CATEGORY = st.builds(
    Column,
    name=st.just("c"),
    kind=st.just("category"),
    gaps=st.booleans(),
    categories=st.integers(1, 5).map(lambda n: tuple("abcde"[:n])),
)


def reference(columns: list[Column], rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Compute the features cell by cell."""
    found = []
    for row in rows:
        numbers, number_gaps, categories, category_gaps = [], [], [], []
        for column, cell in zip(columns, row, strict=True):
            if column.kind == "number":
                standard = 0.0 if np.isnan(cell) else (cell - column.mean) / column.deviation
                numbers.append(min(max(standard, -LARGEST), LARGEST))
                number_gaps += [float(np.isnan(cell))] * column.gaps
            else:
                categories += [float(cell == FIRST + at) for at in range(len(column.categories))]
                category_gaps += [float(cell == MISSING)] * column.gaps
        found.append(numbers + number_gaps + categories + category_gaps)
    return np.array(found, np.float32)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBER | CATEGORY, min_size=1, max_size=8), st.data())
def test_features_are_those_of_the_reference(columns: list[Column], data: st.DataObject) -> None:
    cells = [
        st.just(np.nan) | st.floats(-1e300, 1e300)
        if column.kind == "number"
        else st.sampled_from(
            [MISSING, OTHER, *(FIRST + at for at in range(5))][: column.features + 2]
        )
        for column in columns
    ]
    rows = np.array(data.draw(st.lists(st.tuples(*cells), min_size=1, max_size=4)))
    features = RowFeatures(columns)
    found = features(torch.tensor(rows))
    assert found.dtype == torch.float32
    assert found.shape == (len(rows), features.features)
    np.testing.assert_array_equal(found.numpy(), reference(columns, rows))


def test_casting_the_network_changes_no_constant() -> None:
    rows = torch.tensor([[2.0, 1e9 + 0.25, 3.0, 180.0, np.nan]], dtype=torch.float64)
    features = RowFeatures(COLUMNS)
    cast = copy.deepcopy(features).double().float()
    torch.testing.assert_close(cast(rows), features(rows), rtol=0, atol=0)
    assert features(rows)[0, :3].tolist() == [1.0, 1.0, 0.0]  # float32 knows no 1e9 + 0.25
    assert list(features.state_dict()) == []


class Asked(nn.Module):
    """As a released file is asked: numbers and codes of categories apart."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(RowFeatures(COLUMNS), nn.Linear(11, 3))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        codes = categories.to(torch.float64)
        order = (codes[:, :1], numbers[:, :1], codes[:, 1:], numbers[:, 1:])
        answers: Tensor = self.network(torch.cat(order, dim=1))
        return answers


@pytest.mark.filterwarnings("ignore:# The axis name")  # both inputs have the same batch
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
def test_onnx_runtime_with_texts_answers_as_the_network_does() -> None:
    torch.manual_seed(0)
    asked = Asked().eval()
    assert RowFeatures(COLUMNS).features == 11
    example = (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.int64))
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        asked,
        example,
        dynamo=True,
        dynamic_shapes=({0: batch}, {0: batch}),
        input_names=["numbers", "categories"],
        output_names=["answers"],
        opset_version=20,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    take_texts(model, [column for column in COLUMNS if column.kind == "category"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    numbers = np.array(
        [
            [1e9 + 0.25, 180.0, 19000.0],
            [np.nan, np.nan, np.nan],
            [1e300, -1e300, 0.0],
            [np.inf, 170.0, 20000.0],
            [1e9, 160.5, 20300.25],
        ]
    )
    towns = ["東京", "", "unknown", "Köln", "koln"]
    sexes = ["f", "m", "", "M", "m"]
    texts = np.array([towns, sexes], dtype=object).T
    found = session.run(None, {"numbers": numbers, "categories": texts})[0]
    codes = np.stack(
        [of.codes(towns, COLUMNS[0].categories), of.codes(sexes, COLUMNS[2].categories)], axis=1
    )
    assert codes[:, 0].tolist() == [4, 0, 1, 3, 1]
    with torch.no_grad():
        wanted = asked(torch.tensor(numbers), torch.tensor(codes).long()).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * abs(wanted).max())
    assert np.isfinite(found).all()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_mlp_takes_rows_and_the_others_say_that_they_do_not(batch_norm: bool) -> None:
    asked = NetworkSignature(
        input_shape=(11,), output_shape=(3,), classes=("a", "b", "c"), mean=(), deviation=(),
        width=8, hidden=16, batch_norm=batch_norm,
    )  # fmt: skip
    assert make("mlp", asked, None)(torch.zeros(5, 11)).shape == (5, 3)
    for name in ZOO:
        if name != "mlp":
            with pytest.raises(UserError, match=rf"'{name}': it needs images.*take mlp"):
                make(name, asked, None)
