"""The page a run ends with: one HTML file that needs no network and no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipelines.core.files import write_text
from pipelines.core.paths import Layout
from pipelines.data.card import describe
from pipelines.data.prepared import SPLITS, Card, load_card
from pipelines.gates.finding import Finding
from pipelines.pipeline.html_pages import templates
from pipelines.pipeline.panels import MATRIX_CLASSES, data_uri, panels, read_json_of, read_table_of
from pipelines.tasks.named import task_of

_LAYERS = 12  # with charts of their own; the table lists all


@dataclass(frozen=True)
class StageLine:
    """What became of one stage.

    Attributes:
        stage: Its name.
        outcome: `ran`, `cached` or `restored`.
        seconds: How long it took.
    """

    stage: str
    outcome: str
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What the flow knows of a run, beside the files that its stages left.

    Attributes:
        model: The registered model's name.
        version: The version these bytes are.
        created: Whether this run registered it.
        champion: The version that is champion now; None if there is none.
        promoted: Whether this run made it so.
        reason: Why, or why not.
        run_id: MLflow's, of the training.
        flow_run_id: Prefect's, if the flow ran there.
        tracking_uri: MLflow's store; credentials are not shown.
        seconds: The whole run.
        stages: In order.
        findings: Of every gate on this version, in order.
    """

    model: str
    version: int
    created: bool
    champion: int | None
    promoted: bool
    reason: str
    run_id: str | None
    flow_run_id: str | None
    tracking_uri: str
    seconds: float
    stages: tuple[StageLine, ...]
    findings: tuple[Finding, ...] = ()


def write_report(layout: Layout, summary: Summary) -> Path:
    """Write `reports/report.html` from a finished run and return its path.

    Args:
        layout: The checkout; all stages have run in it.
        summary: What the flow knows beside their files.

    Raises:
        UserError: If a stage's file is absent or not what the stage writes.
    """
    from pipelines.pipeline import charts  # only where a page is made

    reports = layout.reports
    card = load_card(layout.prepared)
    conditioning = _conditioning(reports / "conditioning.csv")
    environment = templates()
    environment.filters["figure"] = _figure
    verification = read_json_of(reports / "verification.json", "verify")
    evaluation = read_json_of(reports / "evaluation.json", "evaluate")
    page = environment.get_template("report.html").render(
        summary=summary,
        tracking_uri=_without_credentials(summary.tracking_uri),
        card=card,
        splits=SPLITS,
        evaluation=evaluation,
        form=card.form,
        about=describe(card).splitlines(),
        verification=verification,
        parity=_parity(verification["comparisons"]),
        curves=_curves(
            read_table_of(reports / "history.csv", "train"), evaluation, layout, card, charts
        ),
        **panels(layout, card, charts),
        layers=conditioning,
        layer_charts=_layer_charts(conditioning, charts),
        examples=data_uri((layout.prepared / card.picture).read_bytes()),
        matrix_classes=MATRIX_CLASSES,
    )
    out = reports / "report.html"
    write_text(out, page)
    return out


def _number(text: str | None) -> float:
    """Return a table's cell as a number; NaN where it is empty or none."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _points(rows: Sequence[Mapping[str, str]], column: str) -> list[tuple[float, float]]:
    found = [(_number(row["step"]), _number(row.get(column))) for row in rows]
    return [(x, y) for x, y in found if math.isfinite(x) and math.isfinite(y)]


def _curves(
    rows: list[dict[str, str]], evaluation: Any, layout: Layout, card: Card, charts: Any
) -> list[dict[str, str]]:
    loss_means = task_of(card.form, layout.root).loss_means

    def both(name: str) -> list[Any]:
        return [
            charts.Series("training", _points(rows, f"train_{name}")),
            charts.Series("validation", _points(rows, f"validation_{name}"), dots=True),
        ]

    drawn = [
        ("Loss", loss_means, both("loss"), "log"),
        ("Error", f"{evaluation['error_means']} in %", both("error"), "error"),
        ("Learning rate", "", [charts.Series("rate", _points(rows, "lr"))], "log"),
    ]
    return [
        {"title": title, "unit": unit, "svg": charts.line_chart(title, series, scale=scale)}
        for title, unit, series, scale in drawn
    ]


def _parity(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the batches compared, and pair → differences in the order of the batches."""
    batches = list(dict.fromkeys(row["batch"] for row in comparisons))
    pairs: dict[str, list[float]] = {}
    for row in comparisons:
        pairs.setdefault(f"{row['first']} – {row['second']}", []).append(row["difference"])
    return {"batches": batches, "pairs": pairs}


def _conditioning(path: Path) -> list[dict[str, Any]]:
    """Return each layer's reparametrisations; none for methods that whiten nothing."""
    if not path.exists():
        return []
    layers: dict[str, list[dict[str, str]]] = {}
    for row in read_table_of(path, "train"):
        layers.setdefault(row["layer"], []).append(row)
    return [
        {
            "name": name,
            "refreshes": len(rows),
            "before": _points(rows, "condition_before"),
            "after": _points(rows, "condition_after"),
            "error_before": _points(rows, "whitening_error_before"),
            "error": _points(rows, "whitening_error"),
            "seconds": sum(y for _, y in _points(rows, "seconds")),
        }
        for name, rows in layers.items()
    ]


def _layer_charts(layers: Sequence[Mapping[str, Any]], charts: Any) -> list[dict[str, str]]:
    """Return two charts for each layer, of at most `_LAYERS`: the worst conditioned ones."""

    def worst(layer: Mapping[str, Any]) -> float:
        return max((y for _, y in layer["before"]), default=0.0)

    chosen = sorted(layers, key=worst, reverse=True)[:_LAYERS]
    size = (4.4, 2.0)
    found = []
    for layer in (layer for layer in layers if layer in chosen):
        name = layer["name"]
        condition = [
            charts.Series("after", layer["after"]),
            charts.Series("before", layer["before"]),
        ]
        error = [charts.Series("after", layer["error"])]
        if layer["error_before"]:
            error.append(charts.Series("before", layer["error_before"]))
        found.append(
            {
                "name": name,
                "condition": charts.line_chart(
                    f"Condition number of {name}", condition, scale="log", size=size
                ),
                "error": charts.line_chart(
                    f"Distance from white of {name}", error, scale="log", size=size
                ),
            }
        )
    return found


def _figure(value: float | None, digits: int = 3) -> str:
    """Return a number as people write it: 0.0123, 1,234, 1.2 × 10⁷."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa} × 10{raised}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.hostname is None or "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
