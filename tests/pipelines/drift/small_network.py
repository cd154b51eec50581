"""A network of two layers, in torch and as a released file, and examples that it suits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from classifiers import classifier_metadata
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipelines.data.prepared import Split
from pipelines.systems.onnx.metadata import OnnxMetadata

SIZE, CLASSES, MAPS = 8, 3, 5


class Small(nn.Module):
    """A convolution, a ReLU and a dense layer on pixels / 255."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, MAPS, 3, padding=1)
        self.second = nn.Conv2d(MAPS, 2, 3, padding=1)
        self.dense = nn.Linear(2 * SIZE * SIZE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        first = self.convolution(images.to(self.dense.weight.dtype) / 255).relu()
        return self.dense(self.second(first).relu().flatten(1))

    def layer_inputs(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """Return the inputs of each layer, and the logits, in float64."""
        found: dict[str, NDArray[np.float64]] = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _layer, given, name=name: found.__setitem__(name, given[0].numpy())
            )
            for name, layer in self.named_children()
        ]
        self.double()
        with torch.no_grad():
            found["logits"] = self(torch.from_numpy(images)).numpy()
        self.float()
        for hook in hooks:
            hook.remove()
        return found


def card() -> OnnxMetadata:
    """What the file says about itself."""
    names = tuple("abc")
    return classifier_metadata(names, SIZE, 1, (0.5,), (0.2,), "a" * 64, "b" * 64, "c" * 64)


def released(network: Small) -> bytes:
    """Return the network as a released file, made without torch's exporter."""
    weights = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    weights |= {"levels": np.float32(255), "first of batch": np.array([0, -1])}
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "levels"], ["scaled"]),
        *_convolution("convolution", "scaled", "first"),
        *_convolution("second", "first", "features"),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CLASSES])
            for name in ("logits", "probabilities")
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, card().metadata())
    return model.SerializeToString()


def _convolution(name: str, given: str, made: str) -> list[object]:
    weights = [f"{name}.weight", f"{name}.bias"]
    return [
        helper.make_node("Conv", [given, *weights], [f"{name}.raw"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", [f"{name}.raw"], [made]),
    ]


@dataclass(frozen=True)
class Data:
    """Patterns of three classes under noise."""

    train: Split
    held_out: NDArray[np.uint8]
    other: NDArray[np.uint8]


def data(train: int = 600, held_out: int = 200) -> Data:
    """Return examples; `other` are of a pattern that no class has."""
    random = np.random.default_rng(0)
    patterns = random.uniform(40, 215, (CLASSES + 1, 1, SIZE, SIZE))

    def draw(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        noise = random.normal(0, 12, (len(labels), 1, SIZE, SIZE))
        return (patterns[labels] + noise).clip(0, 255).astype(np.uint8)

    labels = random.integers(0, CLASSES, train)
    split = Split(draw(labels), labels, tuple(f"{at:064x}" for at in range(train)))
    others = np.full(100, CLASSES)
    return Data(split, draw(random.integers(0, CLASSES, held_out)), draw(others))
