"""Scores the trained network on the test split, which is only reported."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.core.config import EvaluateConfig
from pipelines.core.errors import UserError
from pipelines.core.files import write_json, write_text
from pipelines.data.prepared import Split, load_card, load_split
from pipelines.systems.onnx.metadata import require_fit
from pipelines.tasks.named import task_of
from pipelines.tasks.task import Task
from pipelines.training.network import load
from pipelines.training.shared_arrays import shared


def evaluate(
    trained: Path, prepared: Path, config: EvaluateConfig, reports: Path
) -> dict[str, Any]:
    """Score a trained network and write the figures for the report.

    Written into `reports`: `evaluation.json` (what is returned), `predictions.csv` (what the task
    shows of target and answer of every example, in the split's order; see `Task.table`) and
    `hardest.json` (the examples with the largest loss, hardest first).

    Args:
        trained: Output of `train`.
        prepared: Output of `prepare`.
        config: Examples per step, and how many hardest ones to keep.
        reports: Directory for the three files.

    Returns:
        `test_error` (%; for DVC, a metric named `error` means a failure), `loss` (mean), `images`
        (examples), `task`, `error_means`; `errors` (wrong answers) where they can be counted;
        `metrics` (a list of `Metric`); and in `classes`, per class or part of the data: `name`,
        `images`, `error` (%, None without examples), and `errors` where they can be counted. A
        list, because DVC would make a column of each entry of a mapping.

    Raises:
        UserError: If the network does not fit the data, the test split is empty, or an answer is
            not finite.
    """
    spec, network = load(trained)
    card, split = load_card(prepared), load_split(prepared, "test")
    require_fit(trained, spec, prepared, card, "train")
    if not len(split.inputs):
        raise UserError(f"{prepared}: the test split is empty; raise data.test")
    task = task_of(card.form, prepared)
    targets, inputs = torch.from_numpy(split.targets), shared(split.inputs)
    raw = _in_parts(network, config.batch, inputs)
    if not torch.isfinite(raw).all():
        raise UserError(f"{trained}: the network's output for a test example is NaN or infinite")
    loss = _in_parts(task.loss, config.batch, raw, targets, inputs).double().numpy()
    errors = task.score(raw.numpy(), split.targets, split.inputs)

    result = {
        "test_error": _percent(errors),
        "loss": round(float(loss.mean()), 6),
        "images": len(errors),
        "task": card.form.task,
        "error_means": task.error_means,
        "metrics": [
            {name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(one).items()}
            for one in task.metrics(raw.numpy(), split.targets, split.inputs)
        ],
        "classes": _parts(task, split, errors),
    }
    if task.counts:
        result["errors"] = int(errors.sum())
    answers = task.answer(raw.numpy())
    order = np.argsort(-loss, kind="stable")[: config.hardest]
    hardest = [
        {
            "index": int(at),
            "hash": split.hashes[at],
            "loss": round(float(loss[at]), 6),
            "error": round(float(errors[at]), 6),
            **task.compared(answers[at], split.targets[at]),
        }
        for at in order
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows(task.table(answers, split.targets))
    write_text(reports / "predictions.csv", table.getvalue())
    write_json(reports / "hardest.json", hardest)
    write_json(reports / "evaluation.json", result)
    return result


@torch.inference_mode()
def _in_parts(function: Any, batch: int, *tensors: torch.Tensor) -> torch.Tensor:
    """Return a function's value for each example [n, …], asked batch by batch."""
    return torch.cat(
        [
            function(*(tensor[start : start + batch].clone() for tensor in tensors))
            for start in range(0, len(tensors[0]), batch)
        ]
    )


def _percent(errors: NDArray[np.float64]) -> float | None:
    return round(100 * float(errors.mean()), 4) if len(errors) else None


def _parts(task: Task, split: Split, errors: NDArray[np.float64]) -> list[dict[str, Any]]:
    found = []
    for part in task.parts(split.targets, split.inputs):
        own = errors[part.members]
        row: dict[str, Any] = {"name": part.name, "images": len(own), "error": _percent(own)}
        if task.counts:
            row["errors"] = int(own.sum())
        found.append(row)
    return found
