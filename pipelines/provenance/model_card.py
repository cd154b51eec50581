"""The model card: what a person should know before using a version (Mitchell et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.data.card import describe
from pipelines.data.prepared import SPLITS, Card
from pipelines.tasks.form import CLASSIFICATION, Form
from pipelines.training.start_files import parsed

_WORST = 5


def _percent(value: Any) -> str:
    return "–" if value is None else f"{float(value):.2f} %"


def _parts(card: Card, evaluation: Mapping[str, Any]) -> list[str]:
    rows = [row for row in evaluation.get("classes", []) if isinstance(row, dict)]
    known = [row for row in rows if row.get("error") is not None]
    worst = sorted(known, key=lambda row: (-float(row["error"]), str(row.get("name"))))[:_WORST]
    what = "class" if card.form.task == CLASSIFICATION else "part"
    lines = [f"| {what} | test examples | error |", "|---|---|---|"]
    lines += [
        f"| {row.get('name', '?')} | {row.get('images', '?')} | {_percent(row['error'])} |"
        for row in worst
    ]
    unseen = [name for name in card.classes if not card.counts["test"].get(name)]
    if unseen:
        lines += ["", f"Without a test example: {', '.join(unseen[:20])}."]
    return lines


def _task(card: Card) -> str:
    form = card.form
    what = "images" if form.kind == "images" else "rows of a table"
    if form.task == CLASSIFICATION:
        listed = ", ".join(card.classes[:20]) + (", …" if len(card.classes) > 20 else "")
        return f"Classification of {what}, {len(card.classes)} classes: {listed}."
    if form.values:
        return f"Prediction of {', '.join(value.name for value in form.values)} from {what}."
    return f"{form.task.capitalize()} of {what}."


def _inputs(form: Form) -> list[str]:
    """Return what goes in and comes out, in lines."""
    if form.kind == "images":
        shape = f"{form.channels}, {form.size}, {form.size}"
        lines = [
            f"- Input `images`: {form.dtype} [batch, {shape}], 0 to {form.levels:,}; normalisation "
            "is part of the graph. Any batch size."
        ]
    else:
        named = (("numbers", "double", form.numbers), ("categories", "string", form.categories))
        lines = [
            f"- Input `{name}`: {kind} [batch, {len(places)}], columns "
            f"{', '.join(form.columns[at].name for at in places)}."
            for name, kind, places in named
            if places
        ]
        lines.append(
            "- A missing number is NaN, a missing category the empty text; one that is not known "
            "counts as another one. Scaling and categories are part of the graph."
        )
    return [*lines, f"- Answers: {form.answers_told()}."]


def _metrics(evaluation: Mapping[str, Any]) -> list[str]:
    lines = ["| figure | value | low | high |", "|---|---|---|---|"]
    for row in evaluation.get("metrics", []):
        numbers = " | ".join(f"{row[key]:.4g}" for key in ("value", "low", "high"))
        lines.append(f"| {row['name']} {row['unit']} | {numbers} |".replace("  ", " "))
    return lines


def _limits(form: Form) -> list[str]:
    """Return what it is for, and what not."""
    seen = "Whether errors fall on some groups of people more than on others was not looked at"
    if form.task == CLASSIFICATION:
        return [
            "For telling these classes apart in data like those it was trained on. It answers "
            "every input with one of its classes, also one that shows none of them, and its "
            f"probabilities are not calibrated. {seen} beyond the parts above."
        ]
    return [
        "For data like those it was trained on. It answers every input, also one that is unlike "
        f"all of them. {seen} beyond the parts above."
    ]


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
    form = card.form
    counts = ", ".join(f"{split} {card.total(split)}" for split in SPLITS)
    lines = [
        f"# {name}",
        "",
        _task(card),
        "",
        "## The model",
        "",
        f"- The network `{made_from.get('network', 'unknown')}`, trained by "
        f"`{made_from.get('method', 'unknown')}` and folded into plain layers.",
        *_start(made_from.get("started_from", "")),
        *_inputs(form),
        f"- File: ONNX opset {made_from.get('opset', 'unknown')}, sha256 `{sha256}`.",
        "",
        "## How good it is",
        "",
        f"Test error {_percent(evaluation['test_error'])} "
        f"({evaluation.get('error_means', 'wrong answers')}) of {evaluation.get('images', '?')} "
        "examples that took no part in training or in its choices. "
        f"ONNX Runtime differs from torch by at most {verification['largest_difference']:.1e} of "
        "the largest output. With 95 % intervals:",
        "",
        *_metrics(evaluation),
        "",
        "The worst parts of the test split:",
        "",
        *_parts(card, evaluation),
        "",
        "## What it was trained on",
        "",
        *(f"- {line}" for line in describe(card).splitlines()),
        f"- examples: {counts}",
        "",
        "## What it is for, and what not",
        "",
        *_limits(form),
        "",
        "## What it was made from",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | `{value}` |" for key, value in sorted(made_from.items())),
        "",
    ]
    return "\n".join(lines)
