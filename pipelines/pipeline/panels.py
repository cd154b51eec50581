"""The parts of the report that depend on the task: answers, and the hardest examples."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.card import image
from pipelines.data.prepared import Card, Split, load_split
from pipelines.tasks import columns
from pipelines.tasks.form import CLASSIFICATION, Form

MATRIX_CLASSES = 30
"""Above so many classes a confusion matrix is no longer readable."""
_WORST = 25
_LARGEST_IMAGE = 96
_MOST_CELLS = 12  # columns of a hard row that are shown
_MOST_VALUES = 4  # charts of predicted values


def panels(layout: Layout, card: Card, charts: Any) -> dict[str, Any]:
    """Return what the report's template shows of the answers: `confusion`, `scatter`, `hardest`.

    Args:
        layout: The checkout; `evaluate` has run in it.
        card: The data's.
        charts: The module that draws.

    Raises:
        UserError: If a file is absent or damaged.
    """
    rows = read_table_of(layout.reports / "predictions.csv", "evaluate")
    form = card.form
    confusion, scatter = None, []
    if form.task == CLASSIFICATION:
        confusion = _confusion(card.classes, [(row["actual"], row["predicted"]) for row in rows])
    for value in form.values[:_MOST_VALUES]:
        names = f"actual {value.name}", f"predicted {value.name}"
        pairs = [tuple(float(row[name]) for name in names) for row in rows if names[0] in row]
        if pairs:
            scatter.append({"name": value.name, "svg": charts.scatter_chart(value.name, pairs)})
    hardest = _hardest(layout, form, read_json_of(layout.reports / "hardest.json", "evaluate"))
    return {"confusion": confusion, "scatter": scatter, "hardest": hardest}


def read_json_of(path: Path, stage: str) -> Any:
    """Return a stage's JSON file.

    Raises:
        UserError: If it is absent or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: absent; the stage {stage} makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); rerun {stage}") from None


def read_table_of(path: Path, stage: str) -> list[dict[str, str]]:
    """Return the rows of a stage's CSV file; errors as for `read_json_of`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: absent; the stage {stage} makes it") from None


def _confusion(classes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    counts = Counter(pairs)
    totals = Counter(actual for actual, _ in pairs)
    worst = sorted(
        ((count, pair) for pair, count in counts.items() if pair[0] != pair[1]),
        key=lambda item: (-item[0], item[1]),
    )
    rows = []
    if len(classes) <= MATRIX_CLASSES:
        rows = [
            {
                "name": actual,
                "total": totals[actual],
                "cells": [
                    {
                        "predicted": predicted,
                        "count": counts[actual, predicted],
                        "right": actual == predicted,
                        "shade": _shade(counts[actual, predicted], totals[actual]),
                    }
                    for predicted in classes
                ],
            }
            for actual in classes
        ]
    return {
        "rows": rows,
        "worst": [
            {"actual": a, "predicted": p, "count": count, "share": 100 * count / totals[a]}
            for count, (a, p) in worst[:_WORST]
        ],
        "kinds": len(worst),
    }


def _shade(count: int, total: int) -> int:
    """Return the strength of a cell's colour, %: by the root, so that a single error shows."""
    return round(100 * math.sqrt(count / total)) if count else 0


def _hardest(layout: Layout, form: Form, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows:
        return []
    split = load_split(layout.prepared, "test")
    place = {digest: at for at, digest in enumerate(split.hashes)}
    found = []
    for row in rows:
        if row["hash"] not in place:
            raise UserError(
                f"{layout.reports / 'hardest.json'}: example {row['hash'][:12]} is not in the test "
                "split; rerun evaluate"
            )
        more = _shown(form, split, place[row["hash"]])
        if "reconstruction" in row:
            more["again"] = _png(np.array(row["reconstruction"]).astype(form.dtype))
        values = [
            {"name": value.name, **row[value.name]} for value in form.values if value.name in row
        ]
        found.append({"actual": None, "predicted": None, **row, **more, "values": values})
    return found


def _shown(form: Form, split: Split, at: int) -> dict[str, Any]:
    """Return the example itself: a picture, or the cells of a row."""
    if form.kind == "images":
        return {"image": _png(split.inputs[at]), "cells": []}
    cells = []
    for column, value in zip(form.columns[:_MOST_CELLS], split.inputs[at], strict=False):
        if column.kind == "category":
            text = str(columns.texts(np.array([value]), column.categories)[0])
        else:
            text = "" if math.isnan(value) else f"{value:.5g}"
        cells.append((column.name, text or "missing"))
    return {"image": None, "cells": cells}


def _png(pixels: Any) -> str:
    shown = image(pixels)
    shown.thumbnail((_LARGEST_IMAGE, _LARGEST_IMAGE), Image.Resampling.BICUBIC)
    png = io.BytesIO()
    shown.save(png, format="PNG")
    return data_uri(png.getvalue())


def data_uri(png: bytes) -> str:
    """Return a PNG file as an address that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
