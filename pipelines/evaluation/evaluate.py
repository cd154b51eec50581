"""Scores the trained network on the test split, which is only reported."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipelines.core.config import EvaluateConfig
from pipelines.core.errors import UserError
from pipelines.core.files import write_json, write_text
from pipelines.data.prepared import Card, Split, load_card, load_split
from pipelines.systems.onnx.metadata import require_fit
from pipelines.training.network import load


def evaluate(
    trained: Path, prepared: Path, config: EvaluateConfig, reports: Path
) -> dict[str, Any]:
    """Score a trained network and write the figures for the report.

    Written into `reports`: `evaluation.json` (what is returned), `predictions.csv` (actual and
    predicted class of every image, in the split's order) and `hardest.json` (the images with the
    largest loss, hardest first).

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`.
        config: Images per step, and how many hardest images to keep.
        reports: Directory for the three files.

    Returns:
        `test_error` (%; for DVC, a metric named `error` means a failure), `loss` (mean
        cross-entropy, nats), `errors`, `images`, and in `classes`, per class: `name`, `images`,
        `errors`, `error` (%, None without images). A list, because DVC would make a column of
        each entry of a mapping.

    Raises:
        UserError: If the network does not fit the data, the test split is empty, or an answer is
            not finite.
    """
    spec, network = load(trained)
    card, split = load_card(prepared), load_split(prepared, "test")
    require_fit(trained, spec, prepared, card, "train")
    if not len(split.labels):
        raise UserError(f"{prepared}: the test split has no images; raise data.test")
    logits = _logits(network, split.images, config.batch)
    if not torch.isfinite(logits).all():
        raise UserError(f"{trained}: the network's output for a test image is NaN or infinite")
    labels = torch.from_numpy(split.labels)
    loss = functional.cross_entropy(logits, labels, reduction="none").numpy()
    predicted: NDArray[np.int64] = logits.argmax(1).numpy()
    wrong = predicted != split.labels

    result = {
        "test_error": _percent(int(wrong.sum()), len(wrong)),
        "loss": round(float(loss.mean()), 6),
        "errors": int(wrong.sum()),
        "images": len(wrong),
        "classes": _classes(card, split, wrong),
    }
    order = np.argsort(-loss, kind="stable")[: config.hardest]
    likely = np.exp(-loss)
    hardest = [
        {
            "index": int(at),
            "hash": split.hashes[at],
            "actual": card.classes[split.labels[at]],
            "predicted": card.classes[predicted[at]],
            "probability": round(float(likely[at]), 6),
            "loss": round(float(loss[at]), 6),
        }
        for at in order
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("actual", "predicted"))
    names = card.classes
    writer.writerows((names[a], names[p]) for a, p in zip(split.labels, predicted, strict=True))
    write_text(reports / "predictions.csv", table.getvalue())
    write_json(reports / "hardest.json", hardest)
    write_json(reports / "evaluation.json", result)
    return result


@torch.inference_mode()
def _logits(network: torch.nn.Module, images: NDArray[np.uint8], batch: int) -> torch.Tensor:
    """Return logits float32 [n, classes] of images uint8 [n, channels, size, size]."""
    tensor = torch.from_numpy(images)
    return torch.cat(
        [network(tensor[start : start + batch]) for start in range(0, len(images), batch)]
    )


def _percent(errors: int, images: int) -> float | None:
    return round(100 * errors / images, 4) if images else None


def _classes(card: Card, split: Split, wrong: NDArray[np.bool_]) -> list[dict[str, Any]]:
    count = len(card.classes)
    images = np.bincount(split.labels, minlength=count).tolist()
    errors = np.bincount(split.labels[wrong], minlength=count).tolist()
    return [
        {"name": name, "images": n, "errors": k, "error": _percent(k, n)}
        for name, n, k in zip(card.classes, images, errors, strict=True)
    ]
