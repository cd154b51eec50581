"""How often a look of the monitor alarms, against how many examples it has.

python -m benchmarks.monitor

Run it in a checkout after `prong run`. The exported model answers the test split, as it is and
shifted; a look draws its examples of them and holds them to the reference of the drift graph, or to
answers on the gate split where there is no drift graph. The row `unchanged` shows false alarms, the
others the power at the same rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card, load_split
from pipelines.monitoring.comparison import RATE, Examples, Kind
from pipelines.monitoring.held_out import of_card
from pipelines.monitoring.power import Power, power_curve
from pipelines.systems.onnx.drift_model import DriftModel
from pipelines.systems.onnx.runtime import OnnxModel

SIZES = (25, 50, 100, 200, 400)
KINDS: tuple[Kind, ...] = ("score", "answers", "labels")
Images = NDArray[Any]


def _noisy(images: Images, deviation: float) -> Images:
    draw = np.random.default_rng(0).normal(0, deviation * 255, images.shape)
    return np.clip(images + draw, 0, 255)


def _blurred(images: Images, pixels: float) -> Images:
    return ndimage.gaussian_filter(images.astype(float), (0, 0, pixels, pixels))


def _turned(images: Images, degrees: float) -> Images:
    turned = ndimage.rotate(images.astype(float), degrees, (2, 3), reshape=False, order=1)
    return np.clip(turned, 0, 255)


SHIFTS: dict[str, Callable[[Images], Images]] = {
    "unchanged": lambda images: images,
    "noise 0.05": lambda images: _noisy(images, 0.05),
    "noise 0.2": lambda images: _noisy(images, 0.2),
    "blur 0.5 px": lambda images: _blurred(images, 0.5),
    "blur 1 px": lambda images: _blurred(images, 1.0),
    "rotation 10°": lambda images: _turned(images, 10),
    "rotation 30°": lambda images: _turned(images, 30),
}


def _asked(model: OnnxModel, drift: DriftModel | None, images: Images) -> Examples:
    answers = np.asarray(model.answers(images), float)
    scores = np.zeros(0) if drift is None else drift.scores(images)
    return Examples(scores, answers, answers.argmax(1))


def _row(name: str, points: Sequence[Power], kind: Kind | None) -> str:
    shares = [one.share if kind is None else one.by_kind.get(kind, 0.0) for one in points]
    return f"{name:<14} {kind or 'decision':<9}" + "".join(f"{100 * x:>8.0f}" for x in shares)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print per cent of looks that alarm: shift, kind of test, examples of a look.

    Raises:
        UserError: If the stages have not run here, or the data are no images of 8 bits.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=200, help="of each size")
    parser.add_argument("--rate", type=float, default=RATE, help="false alarms per look")
    parser.add_argument("--drift", type=Path, default=None, help="default: models/drift.onnx")
    asked = parser.parse_args(arguments)
    layout = Layout.find()
    form = load_card(layout.prepared).form
    if form.kind != "images" or form.bits != 8 or not form.classes:
        raise UserError("benchmarks.monitor: allowed: classes of images of 8 bits")
    model = OnnxModel.load(layout.onnx, "cpu")
    path = asked.drift or layout.drift
    drift = DriftModel.load(path, model=model.sha256) if path.is_file() else None
    test = load_split(layout.prepared, "test").inputs
    if drift is not None:
        reference = of_card(drift.card).examples
        print(f"drift score: {drift.card.method}; reference: {reference.count} held-out examples")
    else:
        reference = _asked(model, None, load_split(layout.prepared, "gate").inputs)
        print(f"no drift graph; reference: answers to {reference.count} examples of the gate split")
    sizes = [size for size in SIZES if size <= len(test)]
    print(f"{len(test)} test examples, {asked.looks} looks each, rate {100 * asked.rate:g} %\n")
    print(f"{'shift':<14} {'test':<9}" + "".join(f"{size:>8}" for size in sizes))
    for name, shift in SHIFTS.items():
        pool = _asked(model, drift, np.rint(shift(test)).astype(np.uint8))
        points = power_curve(reference, pool, sizes, rate=asked.rate, looks=asked.looks)
        print(_row(name, points, None))
        for kind in KINDS:
            if points and kind in points[0].by_kind:
                print(_row("", points, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
