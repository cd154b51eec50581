"""How near is `prong score` to the runtime alone, on the same processors?

python -m benchmarks.score --images 1024 --repeats 5

The runtime is asked for images that lie decoded in memory; the scoring lists, reads and decodes
files, writes the table and checks it. Both take turns in one process, with equal threads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipelines.core.processors import processors
from pipelines.export.to_onnx import onnx_bytes
from pipelines.serving.batch.score import batch_size, score
from pipelines.systems.onnx.metadata import CLASSIFIER, OnnxMetadata
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.classification import Classification
from pipelines.tasks.form import CLASSIFICATION, Form

CLASSES, OPSET, TARGET = 10, 18, 85.0
_DIGEST = "0" * 64


class ConvolutionalNetwork(nn.Module):
    """Convolutions of one width on images of 8 bits, each pair followed by a reduction by two."""

    def __init__(self, channels: int, width: int, pairs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(pairs):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, classes] of images uint8 [n, channels, size, size]."""
        logits: Tensor = self.head(self.layers(images.float() / 255).mean((2, 3)))
        return logits


def released(path: Path, size: int, width: int) -> None:
    """Write a network with random weights as a released file."""
    torch.manual_seed(0)
    names = tuple(f"class {at}" for at in range(CLASSES))
    form = Form(CLASSIFICATION, names, size=size, channels=3, mean=(0.0,) * 3, deviation=(1.0,) * 3)
    card = OnnxMetadata(form, CLASSIFIER, (CLASSES,), _DIGEST, _DIGEST, _DIGEST)
    plain = ConvolutionalNetwork(3, width, 3).eval()
    path.write_bytes(onnx_bytes(plain, Classification(form), card, OPSET))


def write_images(folder: Path, count: int, size: int, ending: str) -> NDArray[np.uint8]:
    """Write images that are neither flat nor noise; return them as the model takes them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    found = np.empty((count, 3, size, size), np.uint8)
    for at in range(count):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{at:06d}.{ending}")
        found[at] = np.asarray(image).transpose(2, 0, 1)
    return found


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return how long a call takes, and the processor time of all threads meanwhile."""
    begun, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - used


def compare(base: Path, images: NDArray[np.uint8], repeats: int) -> list[str]:
    """Return a line for each source: images per second of both, and their ratio.

    Median, least and most of the repeats; last that of processor times, which other work on the
    machine disturbs less.
    """
    with tarfile.open(base / "in.tar", "w") as tar:
        tar.add(base / "in", "in")
    lines = []
    runtime = OnnxModel.load(base / "m.onnx", "cpu")
    model = OnnxModel.load(base / "m.onnx", "cpu", spinning=False)  # as the command does
    size, out = batch_size(model), base / "out.parquet"
    for source in ("in", "in.tar"):

        def alone() -> None:
            for start in range(0, len(images), size):
                runtime._session.run([CLASSIFIER[1]], {"images": images[start : start + size]})

        def scored(source: str = source) -> None:
            place = base / source
            score(model, place, out, name="m", version=1, checkout=base, overwrite=True)

        alone(), scored()
        pairs = []
        for at in range(repeats):
            order = (alone, scored) if at % 2 else (scored, alone)
            took = {work: seconds(work) for work in order}
            pairs.append((took[alone], took[scored]))
            out.unlink()
        raw, whole = (
            len(images) / statistics.median(t for t, _ in one) for one in zip(*pairs, strict=True)
        )
        ratios = [[100 * a / b for a, b in zip(*pair, strict=True)] for pair in pairs]
        wall, work = zip(*ratios, strict=True)
        cells = (statistics.median(wall), min(wall), max(wall), statistics.median(work))
        lines.append(
            f"{'folder' if source == 'in' else 'tar':<8}{raw:>12.0f}{whole:>12.0f}"
            + "".join(f"{cell:>9.1f}" for cell in cells)
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both throughputs, and their ratio, which should be 85 % or more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, default=64, help="edge of the images, pixels")
    parser.add_argument("--width", type=int, default=64, help="of the convolutions")
    parser.add_argument("--ending", default="jpg", choices=("jpg", "png", "webp"))
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args(arguments)
    base = Path(tempfile.mkdtemp(prefix="prong-score-"))
    try:
        images = write_images(base / "in", asked.images, asked.size, asked.ending)
        released(base / "m.onnx", asked.size, asked.width)
        print(
            f"{asked.images} {asked.ending} of {asked.size} pixels, width {asked.width}, "
            f"{processors():.3g} processors, load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"{'source':<8}{'runtime/s':>12}{'score/s':>12}{'ratio %':>9}{'least':>9}{'most':>9}"
            f"{'of CPU %':>10}"
        )
        for line in compare(base, images, asked.repeats):
            print(line, flush=True)
        print(f"to reach: a ratio of {TARGET:.0f} %, where decoding is not the limit")
    finally:
        shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
