from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from classifiers import classifier_metadata
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipelines.core.errors import UserError
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.runtime import OnnxModel, providers

SIZE, CLASSES = 4, ("cat", "dog", "ürsus")
WEIGHT = np.random.default_rng(0).normal(size=(SIZE * SIZE, len(CLASSES))).astype(np.float32)


def card(**changes: object) -> OnnxMetadata:
    digest = "0123456789abcdef" * 4
    values: dict[str, object] = {
        "classes": CLASSES,
        "size": SIZE,
        "channels": 1,
        "mean": (0.25,),
        "deviation": (0.5,),
        "data_hash": digest,
        "params_hash": digest,
        "code_hash": digest,
    }
    return classifier_metadata(**(values | changes))  # type: ignore[arg-type]


def linear_model() -> ModelProto:
    """A linear classifier of the released form, small enough to know its answers."""
    n, k = SIZE * SIZE, len(CLASSES)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", k])
            for name in ("logits", "probabilities")
        ],
        [
            numpy_helper.from_array(np.array([-1, n]), "shape"),
            numpy_helper.from_array(WEIGHT, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, card().metadata())
    return model


def write(path: Path, change: Callable[[ModelProto], object] = lambda model: None) -> Path:
    model = linear_model()
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def images(count: int, seed: int = 1) -> NDArray[np.uint8]:
    shape = (count, 1, SIZE, SIZE)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_answers_are_the_models_whatever_the_batch(tmp_path: Path, count: int) -> None:
    model = OnnxModel.load(write(tmp_path / "m.onnx"), "cpu")
    asked = images(count)
    expected = asked.reshape(count, SIZE * SIZE).astype(np.float32) @ WEIGHT
    logits = model.raw(asked)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(model.raw(asked, batch=3), logits, rtol=1e-5, atol=1e-2)
    probabilities = model.answers(asked)
    assert probabilities.shape == (count, len(CLASSES))
    np.testing.assert_allclose(probabilities.sum(axis=1), np.ones(count), rtol=1e-5)


def test_the_card_is_what_was_written(tmp_path: Path) -> None:
    model = OnnxModel.load(write(tmp_path / "m.onnx"))
    assert model.card == card()
    assert model.provider in repr(model)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), st.integers(1, 512))
def test_a_card_survives_its_metadata(classes: list[str], size: int) -> None:
    written = card(classes=tuple(classes), size=size)
    assert OnnxMetadata.parse(written.metadata()) == written


def drop_metadata(model: ModelProto) -> None:
    del model.metadata_props[:]


def metadata(**changes: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        values = card().metadata() | changes
        helper.set_model_props(model, values)

    return change


def outside(location: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        weight = model.graph.initializer[1]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    return change


def outside_in_a_branch(model: ModelProto) -> None:
    """External data hidden in an attribute of a node of a subgraph."""
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch))


def rename_input(model: ModelProto) -> None:
    model.graph.input[0].name = "pixels"


def frozen_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def twice(model: ModelProto) -> None:
    model.metadata_props.add(key="size", value="4")


def broken_graph(model: ModelProto) -> None:
    model.graph.node[2].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_metadata, "metadata missing: format"),
        (metadata(size="5"), "its metadata asks for"),
        (metadata(size="0"), "size = 0"),
        (metadata(size="1e9"), "size"),
        (metadata(size='"4"'), "size"),
        (metadata(channels="2"), "one finite number per channel"),
        (metadata(classes="cat"), "not JSON"),
        (metadata(classes="[]"), "at least one"),
        (metadata(classes='["a", "a", "b"]'), "twice"),
        (metadata(classes='{"a": 1}'), "classes"),
        (metadata(mean="[0.5, 0.5]"), "one finite number per channel"),
        (metadata(mean="[NaN]"), "mean"),
        (metadata(data_hash="../x"), "data_hash"),
        (metadata(format="2"), "metadata missing: form, outputs"),
        (metadata(format="3"), "format 3 is unknown; known: 1, 2"),
        (metadata(layout="NHWC"), "NHWC"),
        (metadata(commit="abc"), "metadata unknown: commit"),
        (twice, "twice"),
        (outside("weights.bin"), "outside the file, first 'weight'"),
        (outside("../../../etc/passwd"), "outside the file"),
        (outside_in_a_branch, "outside the file, first 'hidden'"),
        (rename_input, "inputs and outputs"),
        (frozen_batch, "inputs and outputs"),
        (broken_graph, "cannot run it"),
    ],
)
def test_what_is_not_a_whole_released_model_is_refused(
    tmp_path: Path, change: Callable[[ModelProto], None], message: str
) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = write(tmp_path / "bad.onnx", change)
    with pytest.raises(UserError, match=r"bad\.onnx") as found:
        OnnxModel.load(path, "cpu")
    assert message in str(found.value)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "absent", "directory"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "bad.onnx")
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.touch()
        case "text":
            path.write_text("not a model")
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "directory":
            path.mkdir()
    with pytest.raises(UserError, match=r"bad\.onnx"):
        OnnxModel.load(path, "cpu")


@pytest.mark.parametrize(
    "asked",
    [
        images(2).astype(np.float32),
        images(2).astype(np.int64),
        images(2)[0],
        images(2)[:, :, :3],
        np.zeros((2, 3, SIZE, SIZE), np.uint8),
        np.zeros((2, SIZE, SIZE, 1), np.uint8),
    ],
)
def test_wrong_type_or_shape_is_refused(tmp_path: Path, asked: NDArray[np.uint8]) -> None:
    model = OnnxModel.load(write(tmp_path / "m.onnx"), "cpu")
    with pytest.raises(UserError, match=r"the model takes uint8 \[n, 1, 4, 4\]"):
        model.raw(asked)


def test_an_answer_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    def poison(model: ModelProto) -> None:
        weight = np.full_like(WEIGHT, np.nan)
        model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "weight"))

    with pytest.raises(UserError, match="not finite"):
        OnnxModel.load(write(tmp_path / "m.onnx", poison), "cpu")


def test_the_provider_that_runs_is_the_one_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    can = providers()
    assert "cpu" in can.working
    assert OnnxModel.load(path, "cpu").provider == "cpu"
    assert OnnxModel.load(path, "auto").provider == ("cuda" if "cuda" in can.working else "cpu")
    assert set(can.working) | set(can.problems) == {"cpu", "cuda"}


def test_cuda_asked_for_and_absent_is_an_error_and_says_nothing_else(tmp_path: Path) -> None:
    """Hidden devices stand for none; the runtime's own log must not reach the terminal."""
    path = write(tmp_path / "m.onnx")
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipelines.core.errors import UserError\n"
        "from pipelines.systems.onnx.runtime import OnnxModel\n"
        "try:\n    OnnxModel.load(Path(sys.argv[1]), 'cuda')\n"
        "except UserError as error:\n    print(error)\n    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("provider = 'cuda': CUDA asked for and absent: ")
    assert done.stderr == ""


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in providers().working, reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    asked = images(64)
    cuda = OnnxModel.load(path, "cuda")
    assert cuda.provider == "cuda"
    expected = OnnxModel.load(path, "cpu").raw(asked)
    np.testing.assert_allclose(cuda.raw(asked), expected, rtol=1e-4, atol=1e-2)


def test_metadata_is_plain_text_that_other_tools_can_read(tmp_path: Path) -> None:
    loaded = onnx.load(write(tmp_path / "m.onnx"))
    props = {entry.key: entry.value for entry in loaded.metadata_props}
    assert json.loads(props["classes"]) == list(CLASSES)
    assert list(props) == sorted(props)
