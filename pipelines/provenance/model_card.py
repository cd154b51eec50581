"""The model card: what a person should know before using a version (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.data.card import describe
from pipelines.data.prepared import SPLITS, Card
from pipelines.training.start_files import parsed

_WORST = 5


def _percent(value: Any) -> str:
    return "–" if value is None else f"{float(value):.2f} %"


def _classes(card: Card, evaluation: Mapping[str, Any]) -> list[str]:
    rows = [row for row in evaluation.get("classes", []) if isinstance(row, dict)]
    known = [row for row in rows if row.get("error") is not None]
    worst = sorted(known, key=lambda row: (-float(row["error"]), str(row.get("name"))))[:_WORST]
    lines = ["| class | test images | wrong | error |", "|---|---|---|---|"]
    lines += [
        f"| {row.get('name', '?')} | {row.get('images', '?')} | {row.get('errors', '?')} "
        f"| {_percent(row['error'])} |"
        for row in worst
    ]
    unseen = [name for name in card.classes if not card.counts["test"].get(name)]
    if unseen:
        lines += ["", f"Without a test image: {', '.join(unseen[:20])}."]
    return lines


def _start(started_from: str) -> list[str]:
    version = parsed(started_from)
    if version is None:
        return []
    number, sha256 = version
    return [f"- It started from the weights of version {number} (sha256 `{sha256}`)."]


def model_card(
    name: str,
    sha256: str,
    card: Card,
    made_from: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return a model card as Markdown.

    Args:
        name: The registered model's name.
        sha256: Of the ONNX file.
        card: The data's.
        made_from: What `pipelines.provenance.lineage.lineage` returned.
        figures: The reports `evaluation` and `verification`.
    """
    evaluation, verification = figures["evaluation"], figures["verification"]
    colour = "grey" if card.channels == 1 else "RGB"
    shown = ", ".join(card.classes[:20]) + (", …" if len(card.classes) > 20 else "")
    counts = ", ".join(f"{split} {card.total(split)}" for split in SPLITS)
    lines = [
        f"# {name}",
        "",
        f"Image classification, {len(card.classes)} classes: {shown}.",
        "",
        "## The model",
        "",
        f"- A convolutional network, trained by `{made_from.get('method', 'unknown')}` and folded "
        "into plain layers.",
        *_start(made_from.get("started_from", "")),
        f"- Input `images`: uint8 [batch, {card.channels}, {card.size}, {card.size}], {colour}, "
        "0 to 255; normalisation is part of the graph. Any batch size.",
        f"- Outputs `logits` and `probabilities`: float32 [batch, {len(card.classes)}].",
        f"- File: ONNX opset {made_from.get('opset', 'unknown')}, sha256 `{sha256}`.",
        "",
        "## How good it is",
        "",
        f"Test error {_percent(evaluation['test_error'])} ({evaluation.get('errors', '?')} of "
        f"{evaluation.get('images', '?')} images that took no part in training or in its choices). "
        f"ONNX Runtime differs from torch by at most {verification['largest_difference']:.1e} of "
        "the largest logit. The worst classes:",
        "",
        *_classes(card, evaluation),
        "",
        "## What it was trained on",
        "",
        *(f"- {line}" for line in describe(card).splitlines()),
        f"- images: {counts}",
        "",
        "## What it is for, and what not",
        "",
        "For telling these classes apart in images like those it was trained on. It answers every "
        "image with one of its classes, also one that shows none of them, and its probabilities "
        "are not calibrated. Whether errors fall on some groups of people more than on others was "
        "not looked at beyond the classes above.",
        "",
        "## What it was made from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | `{value}` |" for key, value in sorted(made_from.items())),
        "",
    ]
    return "\n".join(lines)
