"""A checkout whose stages have run on real digits, with a network that is made in milliseconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from classifiers import released_as
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.files import sha256_file, write_json, write_text
from pipelines.core.fingerprints import code_hash, params_hash
from pipelines.core.paths import Layout
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_card, load_split
from pipelines.evaluation.scoring import error
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.runtime import OnnxModel

_ALL = params_file.load(Path(__file__).parents[2] / "params.yaml")
# 64 gate images show less than 519, and a model of microseconds is timed less well than a network.
PARAMS = replace(_ALL, gates=replace(_ALL.gates, margin=0.08, latency=4.0))
HISTORY = """\
step,epoch,train_loss,train_error,validation_loss,validation_error,lr,samples_per_second
1,0,2.5,90.0,,,0.01,100.0
2,0,1.5,60.0,,,0.02,110.0
2,1,,,1.25,40.0,,
"""
CONDITIONING = """\
step,layer,condition_before,condition_after,whitening_error,seconds
2,features.0,120.5,1.5,0.25,0.01
2,head.1,300.0,2.0,0.5,0.02
"""


def list_few_packages() -> None:
    """Let bills of materials list this project and torch: to read all packages takes a second."""
    from pipelines.provenance import bom

    found = [distribution(name) for name in ("prong", "torch")]
    bom.distributions = lambda: found  # type: ignore[attr-defined]


def prepare_digits(root: Path, limit: int = 600) -> Path:
    """Prepare so many real digits under `root`."""
    (root / "data/raw").mkdir(parents=True)
    out = root / "prepared"
    prepare(replace(PARAMS.data, limit=limit), root=root, downloads=root / "downloads", out=out)
    return out


def write_model(path: Path, weight: NDArray[np.float32], card: OnnxMetadata) -> None:
    """Write a linear classifier of raw pixels [pixels + 1, classes] in the released form."""
    shape = ["batch", card.form.channels, card.form.size, card.form.size]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["pixels", "shape"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(card.classes)])
            for name in ("logits", "probabilities")
        ],
        [
            numpy_helper.from_array(np.array([-1, len(weight) - 1]), "shape"),
            numpy_helper.from_array(weight[:-1], "weight"),
            numpy_helper.from_array(weight[-1], "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, card.metadata())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


@dataclass(frozen=True)
class FinishedCheckout:
    """A checkout in which all stages have run.

    Attributes:
        layout: Its paths.
        params: Its parameters.
        weights: sha256 of the trained weights.
        gate_errors: Wrong answers of its model on the gate split.
    """

    layout: Layout
    params: Params
    weights: str
    gate_errors: int

    @classmethod
    def make(cls, layout: Layout, noise: float, seed: int) -> FinishedCheckout:
        """Train a nearest-mean classifier, worse the more noise, and leave what stages leave."""
        data_card, train = load_card(layout.prepared), load_split(layout.prepared, "train")
        pixels = train.inputs.reshape(len(train.inputs), -1).astype(np.float32)
        count = len(data_card.classes)
        means = np.stack([pixels[train.targets == label].mean(axis=0) for label in range(count)])
        draw = np.random.default_rng(seed)
        means += noise * draw.normal(size=means.shape).astype(np.float32)
        scale = np.float32(1e-3)
        weight = scale * np.vstack([means.T, -(means**2).sum(axis=1) / 2])
        card = released_as(data_card, params_hash(PARAMS), code_hash(layout.root))
        write_model(layout.onnx, weight.astype(np.float32), card)
        layout.trained.mkdir(parents=True, exist_ok=True)
        save_file({"weight": weight}, layout.trained / "network.safetensors")
        model = OnnxModel.load(layout.onnx, "cpu")
        score = error(model, load_split(layout.prepared, "test"), data_card.form, layout.root)
        reports = layout.reports
        test = {"test_error": 100 * score.error, "images": score.images}
        test |= {"errors": int(score.errors.sum()), "metrics": [], "error_means": "wrong answers"}
        classes = [{"name": "0", "errors": 1}, {"name": "1", "errors": 2}]
        write_json(reports / "evaluation.json", {**test, "classes": classes})
        compared = [{"first": "whitened", "second": "folded", "batch": 1, "difference": 5e-7}]
        parity = {"largest_difference": 1e-6, "limit": 1e-4, "provider": "cpu"}
        parity |= {"comparisons": compared}
        write_json(reports / "verification.json", parity)
        trained = {"device": "cpu", "seed": 7, "processes": 2, "method": "prong"}
        write_json(reports / "train.json", trained)
        write_text(reports / "history.csv", HISTORY)
        write_text(reports / "conditioning.csv", CONDITIONING)
        gate = error(model, load_split(layout.prepared, "gate"), data_card.form, layout.root)
        weights = sha256_file(layout.trained / "network.safetensors")
        return cls(layout, PARAMS, weights, int(gate.errors.sum()))

    def with_margin(self, margin: float) -> Params:
        """Return the parameters with another gate margin."""
        return replace(self.params, gates=replace(self.params.gates, margin=margin))

    def knobs(self) -> dict[str, object]:
        """Return all parameters by full name."""
        sections = asdict(self.params)  # type: ignore[call-overload]
        return {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items()}
