"""What the report of Fig. 3a-b shows."""

from __future__ import annotations

from dataclasses import replace

from pipelines.paper.experiment import Results, Trained
from pipelines.paper.method_comparison import at_end, by_updates
from pipelines.paper.sheet import Chart, Sheet, SheetTable, SheetTarget, median, number, spread

_ERROR = "squared error of an image"
_GROUPS = (
    ("damping", "(a) Training error for ε and the rate, without step control"),
    ("period", "(b) Training error for T and the initialisation"),
    ("step", "Momentum at a reparametrisation, and step control"),
)


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    charts = tuple(
        Chart(
            title,
            "updates",
            _ERROR,
            tuple(replace(line, ours=False) for line in by_updates(_group(results, name), "train")),
            note="Median and range over seeds; trainings that diverged are left out and named.",
        )
        for name, title in _GROUPS
    )
    tables = tuple(_ends(results, name, title) for name, title in _GROUPS)
    return Sheet(charts, tables, _claims(results))


def _group(results: Results, name: str) -> list[Trained]:
    return [one for key, one in results.there.items() if key.startswith(f"{name}-")]


def _ends(results: Results, name: str, title: str) -> SheetTable:
    rows = []
    for key, one in results.trained.items():
        if key.startswith(f"{name}-"):
            there = key in results.there
            errors = [spread(at_end(one, f)) if there else "–" for f in ("train", "test")]
            rows.append((one.point.label, *errors, one.missing or "–"))
    columns = ("setting", "training error", "test error", "ended early")
    return SheetTable(title, columns, tuple(rows), "At the end; median (least to most) over seeds.")


def _end(results: Results, key: str) -> float:
    """Return the median training error at the end; infinite where a training diverged."""
    there = results.there
    return median(at_end(there[key], "train")) if key in there else float("inf")


def _claims(results: Results) -> tuple[SheetTarget, ...]:
    low, high = _end(results, "damping-0-0"), _end(results, "damping-2-0")
    lost = [one.point.label for key, one in results.trained.items()
            if key.startswith("damping-0-") and key not in results.there]  # fmt: skip
    periods = sorted(
        {int(key.split("-")[1]) for key in results.trained if key.startswith("period-")}
    )
    found = [
        SheetTarget(
            "the paper: at a small rate, a lower ε is faster",
            "lower error with ε 0.01 than with ε 1 at the least rate",
            f"{number(low)} and {number(high)}",
            low < high,
        ),
        SheetTarget(
            "the paper: at a high rate and a low ε, learning is unstable",
            "a training with ε 0.01 diverges, or ends above a smaller rate's",
            ", ".join(lost)
            or f"{number(_end(results, 'damping-0-2'))} at the highest rate, "
            f"{number(_end(results, 'damping-0-1'))} at the next",
            bool(lost) or _end(results, "damping-0-2") > _end(results, "damping-0-1"),
        ),
    ]
    if not periods:
        return tuple(found)
    pairs = [(_end(results, f"period-{t}-whitened"), _end(results, f"period-{t}-preserve"))
             for t in periods]  # fmt: skip
    said = "; ".join(f"T {t}: {number(w)} and {number(p)}"
                     for t, (w, p) in zip(periods, pairs, strict=True))  # fmt: skip
    found.append(
        SheetTarget(
            "the paper: the whitened initialisation is better than the fan-in one",
            "lower error at every T",
            said,
            all(whitened < fan_in for whitened, fan_in in pairs),
        )
    )
    found.append(
        SheetTarget(
            "the paper: learning degrades when T is excessively large",
            f"higher error at T {periods[-1]} than at T {periods[0]}, whitened start",
            f"{number(pairs[-1][0])} and {number(pairs[0][0])}",
            pairs[-1][0] > pairs[0][0],
        )
    )
    carried, reset = _end(results, "step-carried"), _end(results, "step-reset")
    found.append(
        SheetTarget(
            "beyond the paper: momentum that is carried over is not worse than a reset",
            "error not above the reset's",
            f"{number(carried)} and {number(reset)}",
            carried <= reset,
        )
    )
    return tuple(found)
