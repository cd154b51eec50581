"""Real registered versions, each with one thing wrong with it."""

from __future__ import annotations

import pickle
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
from pipelines.registry import versions as registry
from pipelines.registry.versions import LINEAGE, SHA256
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel

Change = Callable[[ModelProto], None]


def register(made: FinishedCheckout, change: Change, *, rescore: bool = True) -> int:
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
        split = load_split(made.layout.prepared, "test")
        score = error(loaded, split, loaded.form, made.layout.root)
        path = made.layout.reports / "evaluation.json"
        wrong = int(score.errors.sum())
        figures = {"test_error": 100 * score.error, "images": score.images, "errors": wrong}
        write_json(path, {**read_json(path), **figures})
    return release.register(made.layout, made.params, None).version


def exchange(made: FinishedCheckout, number: int, change: Change) -> int:
    """Put another model in a version's place, its hashes with it.

    For what registering itself would refuse: as one could who may write to the registry.
    """
    path = stored(made.layout, number)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    client, sha256 = tracking.connect(made.layout), sha256_file(path)
    for key in (SHA256, LINEAGE + "onnx_sha256"):
        client.set_model_version_tag(MODEL, str(number), key, sha256)
    return number


def again(made: FinishedCheckout) -> int:
    """Register a version like the first, told apart by a name in the graph."""
    versions = registry.list_versions(made.layout, MODEL)

    def change(model: ModelProto) -> None:
        model.graph.name = f"like {versions[-1].number}, after {versions[0].number}"

    return register(made, change)


# Changes of a model.


def initializer(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def reweigh(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the values of an initializer."""

    def act(model: ModelProto) -> None:
        tensor = initializer(model, name)
        values = change(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return act


def add_term(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> Change:
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


def lose_class(name: str) -> Change:
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


def mix_batch() -> Change:
    """Let the other images of a batch weigh in a little."""
    nodes = [
        helper.make_node("ReduceMean", ["flat", "first"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "leak"], ["term"]),
    ]
    leak = np.zeros((784, 10), np.float32)
    leak[400, 0] = 0.02
    return add_term(nodes, {"first": np.array([0]), "leak": leak})


def slow_down() -> Change:
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


def overflow() -> Change:
    """Add 0 · exp(mean pixel), which is not a number where the image is white."""
    nodes = [
        helper.make_node("ReduceMean", ["flat", "across"], ["mean"], keepdims=1),
        helper.make_node("Exp", ["mean"], ["huge"]),
        helper.make_node("Mul", ["huge", "nothing"], ["term"]),
    ]
    return add_term(nodes, {"across": np.array([1]), "nothing": np.zeros(1, np.float32)})


def shy_of(row: int, brightness: float) -> Change:
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


def wrong_axis(model: ModelProto) -> None:
    """Ask for an axis that the logits do not have: well-formed, and refused by the runtime."""
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.attribute[0].i = 7


def insert_before_softmax(*nodes: NodeProto, **constants: np.ndarray) -> Change:
    """Let the probabilities follow from what some nodes make of the logits, called `other`."""

    def act(model: ModelProto) -> None:
        at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Softmax")
        model.graph.node[at].input[0] = "other"
        for node in reversed(nodes):
            model.graph.node.insert(at, node)
        model.graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in constants.items()
        )

    return act


def opposite_probabilities() -> Change:
    """Answer with the probabilities of the opposite logits: softmax(−logits)."""
    return insert_before_softmax(helper.make_node("Neg", ["logits"], ["other"]))


def opposite_at(batch: int) -> Change:
    """Turn the sign of all logits where a batch has so many images."""
    nodes = [
        helper.make_node("Shape", ["images"], ["extent"], end=1),
        helper.make_node("Equal", ["extent", "batch"], ["so_many"]),
        helper.make_node("Where", ["so_many", "double", "nothing"], ["share"]),
        helper.make_node("Mul", ["plain", "share"], ["term"]),
    ]
    sizes = {"batch": np.array([batch])}
    factors = {"double": np.float32([-2.0]), "nothing": np.float32([0.0])}
    return add_term(nodes, {**sizes, **factors})


def loop(model: ModelProto) -> None:
    """Add zero to the logits in a loop as long as the image is bright."""
    one, keep, total = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("x", 1))
    )
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["x"], ["y"])],
        "body",
        [one, keep, total],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    body.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    nodes = [
        helper.make_node("ReduceMax", ["pixels"], ["turns"], keepdims=0),
        helper.make_node("Cast", ["turns"], ["count"], to=TensorProto.INT64),
        helper.make_node("Loop", ["count", "", "zero"], ["term"], body=body),
    ]
    add_term(nodes, {"zero": np.float32(0)})(model)


def multiply(edge: int, times: int) -> Change:
    """Add zero to the logits, by multiplying matrices of ones many times over."""
    nodes = [
        helper.make_node("Shape", ["images"], ["extent"], end=1),
        helper.make_node("Mul", ["extent", "nought"], ["none"]),
        helper.make_node("Add", ["none", "edge"], ["edges"]),
        helper.make_node("ConstantOfShape", ["edges"], ["m0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"m{at}", "m0"], [f"m{at + 1}"]) for at in range(times)]
    nodes.append(helper.make_node("ReduceMax", [f"m{times}"], ["term"], keepdims=0))
    return add_term(nodes, {"nought": np.array([0, 0]), "edge": np.array([edge, edge])})


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
