"""Real registered versions, each with one thing wrong with it."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from finished_checkout import FinishedCheckout
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from stored_versions import MODEL, stored

from pipelines.core.files import read_json, sha256_file, write_json
from pipelines.data.prepared import load_split
from pipelines.evaluation.scoring import error
from pipelines.provenance import signing
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.registry.versions import LINEAGE, SHA256
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel


def register(
    made: FinishedCheckout, change: Callable[[ModelProto], None], *, rescore: bool = True
) -> int:
    """Change the checkout's model and register it as any other; return the version.

    Args:
        made: Where stages have run.
        change: Called with the model.
        rescore: Whether the test figure that is registered is that of the changed model.
    """
    model = onnx.load(made.layout.onnx)
    change(model)
    made.layout.onnx.write_bytes(model.SerializeToString())
    if rescore:
        loaded = OnnxModel.load(made.layout.onnx, "cpu")
        score = error(loaded, load_split(made.layout.prepared, "test"), loaded.card.classes)
        path = made.layout.reports / "evaluation.json"
        figures = {"test_error": 100 * score.error, "images": score.images, "errors": score.errors}
        write_json(path, {**read_json(path), **figures})
    return release.register(made.layout, made.params, None).version


def exchange(made: FinishedCheckout, number: int, change: Callable[[ModelProto], None]) -> int:
    """Put another model in a version's place, its hashes (and its signature) with it.

    For what registering itself would refuse: as one could who may write to the registry.
    """
    path = stored(made.layout, number)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    client, sha256 = tracking.connect(made.layout), sha256_file(path)
    for key in (SHA256, LINEAGE + "onnx_sha256"):
        client.set_model_version_tag(MODEL, str(number), key, sha256)
    sign_again(made, number)
    return number


def sign_again(made: FinishedCheckout, number: int) -> None:
    """Sign a version whose file was exchanged, as the holder of the key could."""
    path = stored(made.layout, number)
    signing.sign(made.layout, path, path.with_name(version_files.SIGNATURE))


def again(made: FinishedCheckout) -> int:
    """Register a version like the first, told apart by a name in the graph."""
    versions = registry.list_versions(made.layout, MODEL)

    def change(model: ModelProto) -> None:
        model.graph.name = f"like {versions[-1].number}, after {versions[0].number}"

    return register(made, change)


# Changes of a model.


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def reweigh(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    """Change the values of an initializer."""

    def act(model: ModelProto) -> None:
        tensor = initializer(model, name)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return act


def add_term(
    nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]
) -> Callable[[ModelProto], None]:
    """Add what some nodes make, called `term`, to the logits."""

    def act(model: ModelProto) -> None:
        at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Gemm")
        model.graph.node[at].output[0] = "plain"
        rest = [*nodes, helper.make_node("Add", ["plain", "term"], ["logits"])]
        for place, node in enumerate(rest, at + 1):
            model.graph.node.insert(place, node)
        model.graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in constants.items()
        )

    return act


def lose_class(name: str) -> Callable[[ModelProto], None]:
    """Never answer one class."""

    def change(bias: np.ndarray) -> np.ndarray:
        bias[int(name)] = -1e9
        return bias

    return reweigh("bias", change)


def nan_weight(weight: np.ndarray) -> np.ndarray:
    weight[100, 3] = np.nan
    return weight


def freeze_batch(model: ModelProto) -> None:
    """Reshape every batch to one image."""
    shape = initializer(model, "shape")
    pixels = numpy_helper.to_array(shape)[1]
    shape.CopyFrom(numpy_helper.from_array(np.array([1, pixels]), "shape"))


def mix_batch() -> Callable[[ModelProto], None]:
    """Let the other images of a batch weigh in a little."""
    nodes = [
        helper.make_node("ReduceMean", ["flat", "first"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "leak"], ["term"]),
    ]
    leak = np.zeros((784, 10), np.float32)
    leak[400, 0] = 0.02
    return add_term(nodes, {"first": np.array([0]), "leak": leak})


def slow_down() -> Callable[[ModelProto], None]:
    """Convolve many times to no effect."""
    kernel = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32) / 9
    nodes = [helper.make_node("Conv", ["pixels", "widen"], ["c0"], pads=[1] * 4)]
    nodes += [
        helper.make_node("Conv", [f"c{n}", "kernel"], [f"c{n + 1}"], pads=[1] * 4) for n in range(8)
    ]
    nodes += [
        helper.make_node("ReduceMean", ["c8", "within"], ["mean"], keepdims=0),
        helper.make_node("ReduceMean", ["mean", "across"], ["one"], keepdims=1),
        helper.make_node("Mul", ["one", "nothing"], ["term"]),
    ]
    constants = {
        "widen": kernel[:, :1],
        "kernel": kernel,
        "within": np.array([2, 3]),
        "across": np.array([1]),
        "nothing": np.zeros(1, np.float32),
    }
    return add_term(nodes, constants)


def overflow() -> Callable[[ModelProto], None]:
    """Add 0 · exp(mean pixel), which is not a number where the image is white."""
    nodes = [
        helper.make_node("ReduceMean", ["flat", "across"], ["mean"], keepdims=1),
        helper.make_node("Exp", ["mean"], ["huge"]),
        helper.make_node("Mul", ["huge", "nothing"], ["term"]),
    ]
    return add_term(nodes, {"across": np.array([1]), "nothing": np.zeros(1, np.float32)})


def shy_of(row: int, brightness: float) -> Callable[[ModelProto], None]:
    """Answer 0 wherever a row of the image is brighter somewhere."""
    nodes = [
        helper.make_node("Slice", ["pixels", "start", "end", "axis"], ["edge"]),
        helper.make_node("ReduceMax", ["edge", "all"], ["brightest"], keepdims=0),
        helper.make_node("Sub", ["brightest", "threshold"], ["above"]),
        helper.make_node("Relu", ["above"], ["positive"]),
        helper.make_node("Sign", ["positive"], ["any"]),
        helper.make_node("Reshape", ["any", "column"], ["flag"]),
        helper.make_node("Mul", ["flag", "only"], ["term"]),
    ]
    only = np.zeros((1, 10), np.float32)
    only[0, 0] = 1e9
    return add_term(
        nodes,
        {
            "start": np.array([row]),
            "end": np.array([row + 1]),
            "threshold": np.array([brightness], np.float32),
            "axis": np.array([2]),
            "all": np.array([1, 2, 3]),
            "column": np.array([-1, 1]),
            "only": only,
        },
    )


def grow(model: ModelProto) -> None:
    """Carry a megabyte that nothing uses."""
    ballast = np.random.default_rng(0).normal(size=2**18).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ballast, "ballast"))


def move_weights_outside(model: ModelProto) -> None:
    """Let the weights be read from a file beside the version's folder."""
    tensor = initializer(model, "weight")
    set_external_data(tensor, "../../../secret.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def unknown_operator(model: ModelProto) -> None:
    """Ask for an operator no runtime here has."""
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type, softmax.domain = "Softmin", "elsewhere"


def other_input(model: ModelProto) -> None:
    """Take float images instead of bytes."""
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


# Changes of a version.


def add_pickle(made: FinishedCheckout, number: int) -> None:
    (stored(made.layout, number).parent / "python_model.pkl").write_bytes(
        pickle.dumps({"run": "me"})
    )


def add_disguised_pickle(made: FinishedCheckout, number: int) -> None:
    (stored(made.layout, number).parent / "notes.txt").write_bytes(pickle.dumps({"run": "me"}))


def tamper(made: FinishedCheckout, number: int) -> None:
    """Change one byte of the stored weights."""
    path = stored(made.layout, number)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget_lineage(made: FinishedCheckout, number: int) -> None:
    client = tracking.connect(made.layout)
    client.delete_model_version_tag(MODEL, str(number), f"{LINEAGE}code_hash")


def remove_signature(made: FinishedCheckout, number: int) -> None:
    for path in stored(made.layout, number).parent.glob("*.sig"):
        path.unlink()


def exchange_signature(made: FinishedCheckout, number: int) -> None:
    """Put the first version's signature beside this one's file."""
    for path in stored(made.layout, 1).parent.glob("*.sig"):
        shutil.copy(path, stored(made.layout, number).parent / path.name)
