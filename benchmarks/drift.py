"""How well does a released drift graph tell shifted images apart, and from how many of them?

python -m benchmarks.drift --data FOLDER --work FOLDER

`--data` holds `mnist/` (IDX files, gzip) and `cifar10/` (`train.tar.gz` and `test.tar.gz` of class
folders); `--work` keeps what was trained, so that a second call only scores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from benchmarks import drift_shifts as shifts
from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.paths import Layout
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_split
from pipelines.drift.candidates import auroc
from pipelines.export.to_onnx import export
from pipelines.systems.onnx.drift_model import DriftModel
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.training.loop import Loop, save
from pipelines.training.parallel import TrainingRanks

NEAR_TARGET, FAR_TARGET = 0.90, 0.95
"""AUROC to reach: of shifted digits, and of other data sets."""
BATCHES = (5, 10, 20, 50, 100)
"""Examples of which the power is shown."""
LEVEL = 0.01
"""False alarms that a test of one batch is allowed."""
_REPEATS = 200
_POWER = ("rotation 10°", "rotation 20°", "blur σ 0.5 px", "noise σ 10", "thicker 2×2")


class Trained:
    """A model that was trained and exported, with the scores of its test images.

    Args:
        folder: Keeps what is made.
        params: Data, training and export.
        most: Test images that are used.
    """

    def __init__(self, folder: Path, params: Params, most: int) -> None:
        prepared, trained = folder / "prepared", folder / "trained"
        if not (prepared / "card.json").is_file():
            prepare(params.data, root=folder, downloads=folder / "downloads", out=prepared)
        if not (trained / "network.json").is_file():
            loop = Loop(params.train, prepared, TrainingRanks(0, 1, torch.device("cpu")), None)
            loop.run()
            save(trained, loop.spec, loop.network)
        onnx, drift = folder / "model.onnx", folder / "drift.onnx"
        for warning in export(trained, prepared, params, Path.cwd(), onnx, drift=drift):
            print(warning)
        self.model, self.drift = OnnxModel.load(onnx, "cpu"), DriftModel.load(drift)
        test = load_split(prepared, "test")
        self.images, self.labels = test.inputs[:most], test.targets[:most]
        self.form = self.model.form

    def scores(self, images: shifts.Images) -> dict[str, NDArray[np.float64]]:
        """Return the softmax score and that of the drift graph, [n] each."""
        answers = self.model.answers(images).astype(np.float64)
        return {"MSP": -answers.max(axis=1), "drift": self.drift.scores(images)}

    def error(self, images: shifts.Images) -> float:
        """Return the share of wrong answers to shifted test images, %."""
        return float(100 * (self.model.raw(images).argmax(axis=1) != self.labels).mean())


def table(made: Trained, far: Mapping[str, shifts.Images], near_target: float) -> list[str]:
    """Print AUROC by shift; return what misses its target."""
    inside, random = made.scores(made.images), np.random.default_rng(0)
    missed = []
    print(f"method: {made.drift.card.method}; test error {made.error(made.images):.2f} %")
    print(f"{'shift':<18} {'error %':>8} {'MSP':>7} {'drift':>7} {'target':>7}")
    near = {name: change(made.images, random) for name, change in shifts.NEAR.items()}
    for name, images in {**near, **far}.items():
        outside = made.scores(images)
        found = {kind: auroc(inside[kind], outside[kind]) for kind in inside}
        target = FAR_TARGET if name in far else near_target
        shown = f"{made.error(images):.1f}" if name in near else "–"
        held = f"{target:.2f}" if target else "–"
        print(f"{name:<18} {shown:>8} {found['MSP']:7.3f} {found['drift']:7.3f} {held:>7}")
        if found["drift"] < max(target, found["MSP"] - 0.01):
            missed.append(f"{name}: {found['drift']:.3f} (MSP {found['MSP']:.3f})")
    return missed


def power(made: Trained) -> None:
    """Print how often one batch is noticed by a Kolmogorov–Smirnov test, % of batches."""
    reference = np.array(made.drift.card.reference_scores)
    random = np.random.default_rng(1)
    print(f"\nbatches noticed, %, at {100 * LEVEL:g} % false alarms; examples in a batch:")
    print(f"{'shift':<18}" + "".join(f"{count:>7}" for count in BATCHES))
    changes = {"none": None} | {name: shifts.NEAR[name] for name in _POWER}
    for name, change in changes.items():
        images = made.images if change is None else change(made.images, random)
        scores = made.drift.scores(images)
        row = [_noticed(reference, scores, count, random) for count in BATCHES]
        print(f"{name:<18}" + "".join(f"{100 * share:7.1f}" for share in row))


def _noticed(
    reference: NDArray[np.float64],
    scores: NDArray[np.float64],
    count: int,
    random: np.random.Generator,
) -> float:
    drawn = (random.choice(scores, count, replace=False) for _ in range(_REPEATS))
    return float(np.mean([ks_2samp(reference, part).pvalue < LEVEL for part in drawn]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print AUROC tables of a digits model and a CIFAR-10 model, and the power of batches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=700, help="test images of each model")
    parser.add_argument("--limit", type=int, default=24000, help="images of CIFAR-10, 0: all")
    parser.add_argument("--epochs", type=int, default=4, help="of the CIFAR-10 model")
    parser.add_argument("--only", choices=("digits", "cifar10"))
    asked = parser.parse_args(arguments)
    params = params_file.load(Layout.find().params)
    random, missed = np.random.default_rng(2), []
    if asked.only != "cifar10":
        print("digits: the default job")
        made = Trained(asked.work / "digits", params, asked.images)
        size, count = made.form.size, len(made.images)
        archive = asked.data / "cifar10/test.tar.gz"
        far = {"CIFAR-10, grey": shifts.cifar10(archive, count, size, 1)}
        missed += table(made, far, NEAR_TARGET)
        power(made)
    if asked.only != "digits":
        print(f"\nCIFAR-10: {asked.limit or 'all'} images, {asked.epochs} epochs")
        archive = asked.data / "cifar10/train.tar.gz"
        data = replace(params.data, source="images", path=str(archive), limit=asked.limit)
        train = replace(params.train, epochs=asked.epochs, flip=True)
        params = replace(params, data=data, train=train)
        made = Trained(asked.work / "cifar10", params, asked.images)
        archive = asked.data / "mnist/t10k-images-idx3-ubyte.gz"
        far = {
            "MNIST": shifts.mnist(archive, len(made.images), made.form.size, 3),
            "normal noise": shifts.normal_noise(made.images, random),
            "uniform noise": shifts.uniform_noise(made.images, random),
        }
        missed += table(made, far, 0.0)
        power(made)
    print("\nbelow the target, or more than 0.01 below MSP: " + ("; ".join(missed) or "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
