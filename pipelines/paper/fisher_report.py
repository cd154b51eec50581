"""What the report of Fig. 2 shows."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.core.files import atomic_path
from pipelines.paper.experiment import Results, Trained
from pipelines.paper.sheet import (
    Chart,
    Line,
    Picture,
    Rule,
    Sheet,
    SheetTable,
    SheetTarget,
    median,
    number,
    spread,
)

_STATED = 5.0
"""Per cent of the condition number that are left: "reduction of more than 95%"."""


def draw(before: Tensor, after: Tensor, path: Path) -> None:
    """Draw the absolute entries of both matrices beside each other, each of its largest.

    Args:
        before: [n, n].
        after: [n, n].
        path: Of the PNG file.
    """
    figure = Figure(figsize=(10, 5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for axes, matrix, title in zip(
        figure.subplots(1, 2),
        (before, after),
        ("(a) before", "(b) after the first reparametrisation"),
        strict=True,
    ):
        shown = matrix.abs().cpu()
        image = axes.imshow(
            (shown / shown.max()).clamp(min=1e-6).numpy(), norm=LogNorm(1e-4, 1), cmap="viridis"
        )
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(image, ax=figure.axes, label="|F| ÷ its largest entry", shrink=0.8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def relative(one: Trained) -> dict[int, list[tuple[int, float]]]:
    """Return by seed the condition number at each update, % of that at the start.

    A whitened network's start is that before the first reparametrisation.
    """
    found = {}
    for seed, curve in one.curves.items():
        series = curve.series("condition")
        start = curve.before.get("condition", series[0][1] if series else float("nan"))
        found[seed] = [(update, 100 * value / start) for update, value in series]
    return found


def over_seeds(curves: dict[int, list[tuple[int, float]]]) -> list[tuple[float, list[float]]]:
    """Return at each update that all seeds have the values of all seeds."""
    tables = [dict(points) for points in curves.values()]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(update, [table[update] for table in tables]) for update in shared]


def _first(one: Trained) -> list[float]:
    """Return by seed what is left after the first reparametrisation, %."""
    return [points[0][1] for points in relative(one).values() if points]


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    there = results.there
    lines = tuple(
        Line(
            one.point.label,
            tuple(
                (update, median(values), min(values), max(values))
                for update, values in over_seeds(relative(one))
            ),
            ours=one.point.method == "prong",
        )
        for one in there.values()
    )
    chart = Chart(
        "(c) Condition number of the Fisher matrix",
        "updates",
        "% of the condition number at the start",
        lines,
        rules=(Rule('paper: "reduction of more than 95%"', _STATED),),
        note=(
            "Median and range over seeds. PRONG's curve begins after the first reparametrisation. "
            "The paper's own curves are not to be had."
        ),
    )
    losses = Chart(
        "Training cross-entropy",
        "updates",
        "nats",
        tuple(
            Line(
                one.point.label,
                tuple(
                    (update, median(values), min(values), max(values))
                    for update, values in over_seeds(
                        {seed: curve.series("loss") for seed, curve in one.curves.items()}
                    )
                ),
                ours=one.point.method == "prong",
            )
            for one in there.values()
        ),
        note="The protocol: all reach the same training error in the given time.",
    )
    pictures = tuple(
        Picture(
            "(a, b) Blocks of the middle layers of the Fisher matrix, absolute values",
            file.name,
            "On a logarithmic scale; with respect to Ω after the reparametrisation.",
        )
        for one in there.values()
        for seed, folder in sorted(one.files.items())[:1]
        if (file := folder / "fisher.png").is_file()
    )
    return Sheet((chart, losses), (_stated(results), _conditions(results)), _targets(results),
                 pictures)  # fmt: skip


def _stated(results: Results) -> SheetTable:
    ours = results.there.get("prong")
    found = "not trained" if ours is None else f"{spread(_first(ours))} %"
    row = ("condition number after the first reparametrisation, of that before", "< 5 %", found)
    return SheetTable("The paper's numbers beside ours", ("what", "paper", "here"), (row,))


def _conditions(results: Results) -> SheetTable:
    rows = []
    for one in results.trained.values():
        if one.key not in results.there:
            rows.append((one.point.label, one.missing or "not trained", *["–"] * 6))
            continue
        curves = list(one.curves.values())
        series = list(relative(one).values())
        starts = [c.before.get("condition", c.marks[0].figures["condition"]) for c in curves]
        rows.append(
            (
                one.point.label,
                number(float(one.values["lr"])),
                spread([c.last.figures["loss"] for c in curves]),
                spread([c.last.figures["test_error"] for c in curves]),
                spread(starts),
                f"{spread([points[0][1] for points in series])} %",
                f"{spread([points[-1][1] for points in series])} %",
                spread([c.last.figures["rank"] for c in curves]),
            )
        )
    columns = (
        "method", "rate", "training cross-entropy at the end", "test error, %",
        "condition number at the start", "after the first reparametrisation", "at the end",
        "rank at the end",
    )  # fmt: skip
    note = "Median (least to most) over seeds. The blocks have 840 parameters."
    return SheetTable("Condition numbers", columns, tuple(rows), note)


def _targets(results: Results) -> tuple[SheetTarget, ...]:
    there = results.there
    ours = there.get("prong")
    if ours is None:
        return ()
    left = _first(ours)
    first = SheetTarget(
        "condition number after the first reparametrisation, of that before",
        "≤ 5 % with every seed",
        f"{spread(left)} %",
        max(left) <= _STATED,
    )
    own = {update: median(values) for update, values in over_seeds(relative(ours))}
    above = []
    for key, one in there.items():
        if key == "prong":
            continue
        for update, values in over_seeds(relative(one)):
            if update in own and own[update] >= median(values):
                above.append(f"{one.point.label} at update {update:g}")
    marks = f"at {len(own)} of {len(own)} marks" if not above else f"not below {', '.join(above)}"
    below = SheetTarget(
        "PRONG's condition number below every baseline's throughout, medians",
        "at every mark",
        marks,
        not above if len(there) > 1 else None,
    )
    return (first, below)
