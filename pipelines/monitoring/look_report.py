"""The reports of a look: one HTML page that needs no network and no other file, and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.files import write_json, write_text
from pipelines.core.paths import Layout
from pipelines.core.text import shown
from pipelines.monitoring.comparison import Examples, Test
from pipelines.monitoring.look import HeldOut, Look, Seen, VersionLook
from pipelines.monitoring.look_state import PastLook

_TESTS = 15  # rows of the table, the surest first
_CLASSES = 20
_POINTS = 200  # of a distribution's line
_LOOKS = 60  # of the picture over time


def paths(layout: Layout, model: str) -> tuple[Path, Path]:
    """Return where the reports of a model's last look lie: HTML and JSON."""
    return layout.reports / f"monitor-{model}.html", layout.reports / f"monitor-{model}.json"


def write_report(layout: Layout, seen: Seen, past: Sequence[PastLook]) -> tuple[Path, Path]:
    """Write the reports of a look, atomically; return page and JSON file.

    Args:
        layout: The checkout.
        seen: The look, and what it compared.
        past: Earlier looks and this one, the oldest first.
    """
    import jinja2  # these two only where a page is made

    from pipelines.pipeline import charts

    page, data = paths(layout, seen.look.model)
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [
                jinja2.PackageLoader("pipelines.monitoring"),
                jinja2.PackageLoader("pipelines.pipeline"),
            ]
        ),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["p"] = _p
    versions = [
        {
            "look": one,
            "tests": _surest(one.tests),
            "charts": _charts(one, *seen.compared[one.version], past, charts) if one.tests else [],
            "labels": _labels(*seen.compared[one.version]) if one.tests else [],
        }
        for one in seen.look.versions
    ]
    text = environment.get_template("monitor.html").render(
        look=seen.look, versions=versions, most_tests=_TESTS
    )
    write_json(data, as_json(seen.look))
    write_text(page, text)
    return page, data


def as_json(look: Look) -> dict[str, Any]:
    """Return a look as plain values; what is not finite is null."""
    values: dict[str, Any] = asdict(look)
    for version, one in zip(values["versions"], look.versions, strict=True):
        for row, test in zip(version["tests"], one.tests, strict=True):
            row["alarms"] = test.alarms
    values["drift"] = bool(look.drift)
    return values


def _plain(value: Any) -> Any:
    """Return what a page shows of a value; the charts' own markup stays as it is."""
    return shown(value) if type(value) is str else value


def _p(value: float) -> str:
    """Return a probability as people write it: 0.034, 1.2 × 10⁻⁷."""
    if value >= 1e-3:
        return f"{value:.2g}"
    if value < 1e-300:
        return "< 10⁻³⁰⁰"
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}"


def _surest(tests: Sequence[Test]) -> list[Test]:
    return sorted(tests, key=lambda one: one.p / one.level)[:_TESTS]


def _charts(
    one: VersionLook, reference: HeldOut, seen: Examples, past: Sequence[PastLook], charts: Any
) -> list[dict[str, str]]:
    """Return the drift score, the answer that moved most, and the looks so far, as pictures."""
    found = []
    kinds = {test.kind for test in one.tests}
    if "score" in kinds:
        said = "drift score: larger is further from the training data"
        drawn = _distributions(reference.examples.scores, seen.scores, said, charts)
        found.append(
            {"title": "Drift score", "unit": f"cumulative share; {one.method}", "svg": drawn}
        )
    if "answers" in kinds:
        answers = [test for test in one.tests if test.kind == "answers"]
        at = max(range(len(answers)), key=lambda place: answers[place].statistic)
        held, now = reference.examples.answers[:, at], seen.answers[:, at]
        drawn = _distributions(held, now, answers[at].name, charts)
        found.append({"title": "Answer that moved most", "unit": "cumulative share", "svg": drawn})
    earlier = [look for look in past if look.version == one.version][-_LOOKS:]
    if len(earlier) > 1:
        lines = {
            "drift score": [look.score for look in earlier],
            "largest of the answers": [look.answers for look in earlier],
        }
        series = [
            charts.Series(
                name, [(x, y) for x, y in enumerate(values, 1) if y is not None], dots=True
            )
            for name, values in lines.items()
        ]
        drawn = charts.line_chart("Statistics over the looks", series, along="look")
        found.append(
            {"title": "Over the looks", "unit": "Kolmogorov–Smirnov statistic", "svg": drawn}
        )
    return found


def _distributions(
    reference: NDArray[np.float64], seen: NDArray[np.float64], along: str, charts: Any
) -> str:
    series = [
        charts.Series("held-out", _cumulative(reference)),
        charts.Series("requests", _cumulative(seen)),
    ]
    svg: str = charts.line_chart(f"Distribution of {along}", series, along=along, counted=False)
    return svg


def _cumulative(values: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return points of a distribution function; values that are not finite only lower its end."""
    shares = np.linspace(0, 1, _POINTS)
    points = zip(np.quantile(values, shares, method="lower").tolist(), shares.tolist(), strict=True)
    return [(x, y) for x, y in points if math.isfinite(x)]


def _labels(reference: HeldOut, seen: Examples) -> list[dict[str, Any]]:
    """Return how often each class was answered, in per cent, the largest change first."""
    first, second = reference.examples.labels, seen.labels
    if not len(first) or not len(second):
        return []
    most = int(max(first.max(), second.max())) + 1
    held, now = (100 * np.bincount(part, minlength=most) / len(part) for part in (first, second))
    names = reference.classes
    rows: list[dict[str, Any]] = [
        {
            "name": names[at] if at < len(names) else f"class {at}",
            "held": float(held[at]),
            "now": float(now[at]),
        }
        for at in range(most)
    ]
    return sorted(rows, key=lambda row: -abs(row["held"] - row["now"]))[:_CLASSES]
