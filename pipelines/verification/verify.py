"""Compares whitened network, folded network and ONNX Runtime on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines.core.config import VerifyConfig
from pipelines.core.errors import UserError
from pipelines.core.files import write_json
from pipelines.data.prepared import load_split
from pipelines.export.to_onnx import folded
from pipelines.systems.onnx.metadata import require_fit
from pipelines.systems.onnx.runtime import BATCHES, VERSION, OnnxModel
from pipelines.training.network import load

Answer = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """Two networks on the same images at one batch.

    Attributes:
        first: Name of the first network.
        second: Name of the second network.
        batch: Images per call.
        images: Images compared.
        difference: Largest difference of logits, relative to the largest logit of the first.
        ties: Images whose labels differ while the two largest logits of the first network are
            closer than the limit: both labels are accepted.
        labels: Other images whose labels differ.
    """

    first: str
    second: str
    batch: int
    images: int
    difference: float
    ties: int
    labels: int


def verify(
    trained: Path, prepared: Path, onnx: Path, config: VerifyConfig, out: Path
) -> dict[str, Any]:
    """Compare the three networks on real test images, at every batch of `BATCHES`.

    The torch networks run on the CPU in float32, ONNX Runtime on its provider without TF32.

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`.
        onnx: Output of `export`.
        config: Provider, limit and number of images.
        out: JSON file for the returned values; written only if no difference exceeds the limit.

    Returns:
        `largest_difference`, `limit`, `images`, `ties`, `provider` (the one that ran),
        `onnxruntime` (its version), `sha256` (of the ONNX file) and `comparisons`.

    Raises:
        UserError: If two networks differ by more than the limit or in a label, if the file does not
            belong to this network, or if the requested provider is absent.
    """
    spec, network = load(trained)
    model = OnnxModel.load(onnx, config.provider, asked="verify.provider")
    require_fit(onnx, model.card, trained, spec, "export")
    images = load_split(prepared, "test").images[: config.images]
    if not len(images):
        raise UserError(f"{prepared}: the test split has no images; raise data.test")
    comparisons = compare(
        {
            "whitened": torch_answer(network),
            "folded": torch_answer(folded(network)),
            "onnx": lambda asked, batch: model.logits(asked, batch=batch),
        },
        images,
        config.limit,
    )
    where = f"ONNX Runtime {VERSION} on {model.provider}, {len(images)} images"
    # Not `>`: NaN must fail too.
    if not all(c.difference <= config.limit and c.labels == 0 for c in comparisons):
        raise UserError(
            f"{onnx}: the networks disagree; verify.limit = {config.limit:g} ({where})\n"
            + table(comparisons)
        )
    result = {
        "largest_difference": max(c.difference for c in comparisons),
        "limit": config.limit,
        "images": len(images),
        "ties": sum(c.ties for c in comparisons),
        "provider": model.provider,
        "onnxruntime": VERSION,
        "sha256": model.sha256,
        "comparisons": [asdict(c) for c in comparisons],
    }
    write_json(out, result)
    return result


def compare(
    networks: Mapping[str, Answer], images: NDArray[np.uint8], limit: float
) -> list[Parity]:
    """Compare every pair of networks at every batch of `BATCHES`.

    Args:
        networks: Name → function of images and batch that returns logits [n, classes].
        images: uint8 [n, channels, size, size], n ≥ 1; repeated where n is below a batch.
        limit: Two logits that differ by less, relative to the largest logit, count as tied.
    """
    found = []
    for batch in BATCHES:
        asked = images[np.arange(max(len(images), batch)) % len(images)]
        logits = {name: answer(asked, batch) for name, answer in networks.items()}
        for first, second in combinations(networks, 2):
            one, other = logits[first], logits[second]
            scale = max(float(np.abs(one).max()), float(np.finfo(np.float32).tiny))
            differ = one.argmax(1) != other.argmax(1)
            best = np.sort(one, axis=1)[:, -2:]
            tied = best[:, -1] - best[:, 0] < limit * scale
            found.append(
                Parity(
                    first=first,
                    second=second,
                    batch=batch,
                    images=len(images),
                    difference=float(f"{np.abs(one - other).max() / scale:.3g}"),
                    ties=int((differ & tied).sum()),
                    labels=int((differ & ~tied).sum()),
                )
            )
    return found


def table(comparisons: list[Parity]) -> str:
    """Return the comparisons as lines of text."""
    lines = [f"{'pair':<20} {'batch':>5} {'difference':>11} {'labels':>7} {'ties':>5}"]
    for c in comparisons:
        pair = f"{c.first} – {c.second}"
        lines.append(f"{pair:<20} {c.batch:>5} {c.difference:>11.2e} {c.labels:>7} {c.ties:>5}")
    return "\n".join(lines)


def torch_answer(network: nn.Module) -> Answer:
    """Return a function of raw images and batch size that returns a torch network's logits."""

    def answer(images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
        tensor = torch.from_numpy(images)
        with torch.inference_mode():
            parts = [network(tensor[at : at + batch]) for at in range(0, len(images), batch)]
            return torch.cat(parts).numpy()

    return answer
