"""What the report of Fig. 4a-b shows."""

from __future__ import annotations

import math

from pipelines.paper.autoencoder_report import settings
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained
from pipelines.paper.method_comparison import (
    at_end,
    charts,
    seconds_per_example,
    share,
)
from pipelines.paper.sheet import (
    Rule,
    Sheet,
    SheetTable,
    SheetTarget,
    median,
    number,
    spread,
)

_ERROR = "classification error, %"
_OURS, _BN = ("prong", "prong-bn"), "bn-sgd"
_STATISTICS = ("prong", "prong-augmented", "prong-plain")
_CHARTS = {"train": "(a) Training error", "test": "(b) Test error"}
_RULES = (Rule("the paper's BN: 8.22 %", 8.22), Rule("the paper's PRONG: 7.32 %", 7.32))


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    methods = [one for key, one in results.there.items() if key not in _STATISTICS[1:]]
    # Errors of a part of the images are too far from the paper's for one pair of axes.
    rules = {} if results.scale.limit else {"test": _RULES}
    shown = charts(methods, _CHARTS, _ERROR, rules=rules)
    tables = (_stated(results), _ranks(results), _ablation(results), settings(results))
    return Sheet(shown, tables, _targets(results))


def selected(curve: Curve) -> CurveMark:
    """Return the mark that the validation set selects: the first with the least error."""
    return min(curve.marks, key=lambda mark: mark.figures["validation"])


def _selected(one: Trained, figure: str) -> list[float]:
    return [selected(curve).figures[figure] for curve in one.curves.values()]


def _ours(results: Results) -> Trained | None:
    """Return PRONG or PRONG⁺, whichever has the smaller validation error."""
    found = [results.there[key] for key in _OURS if key in results.there]
    return min(found, key=lambda one: median(_selected(one, "validation")), default=None)


def _stated(results: Results) -> SheetTable:
    rows = []
    for what, key, stated in (("PRONG", "prong", "7.32"), ("batch normalisation", _BN, "8.22")):
        one = results.there.get(key)
        found = spread(_selected(one, "test")) if one is not None else "not trained"
        rows.append((f"test error: {what}, %", stated, found))
    note = (
        f"Here trained on {_trained_on(results)} images with "
        f"{results.scale.examples:,} examples a training; the paper's is trained on 45,000."
    )
    return SheetTable(
        "The paper's numbers beside ours", ("what", "paper", "here"), tuple(rows), note
    )


def _trained_on(results: Results) -> str:
    return f"{int(results.card['train']) - int(results.scale.options['validation']):,}"


def _ranks(results: Results) -> SheetTable:
    rows: list[tuple[str, ...]] = []
    bn = results.there.get(_BN)
    for one in sorted(results.there.values(), key=lambda one: median(_selected(one, "test"))):
        part: float | None = None
        if bn is not None:
            part, _ = share(one, bn, "test", "examples")
        rows.append(
            (
                one.point.label,
                spread(at_end(one, "train")),
                spread(_selected(one, "validation")),
                spread(_selected(one, "test")),
                spread(at_end(one, "test")),
                "not reached" if part is None else f"{100 * part:.0f} %",
                number(median([curve.last.seconds for curve in one.curves.values()])),
                number(1000 * seconds_per_example(one)),
            )
        )
    for one in results.trained.values():
        if one.key not in results.there:
            rows.append((one.point.label, one.missing or "not trained", *["–"] * 6))
    columns = (
        "method", "training error, %", "least validation error, %", "test error there, %",
        "test error at the end, %", "at BN + SGD's final test error after, of its epochs",
        "seconds", "ms an example",
    )  # fmt: skip
    return SheetTable(
        "Errors", columns, tuple(rows), "Best test error first; median (least to most) over seeds."
    )


def _ablation(results: Results) -> SheetTable:
    named = ("training steps", "augmented images, drawn anew", "plain images, drawn anew")
    rows: list[tuple[str, ...]] = []
    for key, said in zip(_STATISTICS, named, strict=True):
        one = results.there.get(key)
        if one is None:
            rows.append((said, "not trained", "–", "–"))
            continue
        errors = (at_end(one, "train"), _selected(one, "validation"), _selected(one, "test"))
        rows.append((said, *map(spread, errors)))
    columns = ("statistics of", "training error, %", "least validation error, %",
               "test error there, %")  # fmt: skip
    return SheetTable(
        "Where PRONG's whitening statistics come from",
        columns,
        tuple(rows),
        "The last two differ in nothing else.",
    )


def _resolution(error: float, results: Results) -> float:
    """Return the standard error of a test error, points, that the number of images brings."""
    share_wrong = error / 100
    return 100 * math.sqrt(share_wrong * (1 - share_wrong) / results.scale.measured)


def _targets(results: Results) -> tuple[SheetTarget, ...]:
    ours, bn = _ours(results), results.there.get(_BN)
    ahead = float(results.scale.options["ahead"])
    if ours is None or bn is None:
        why = "one of the two was not trained"
        return (SheetTarget("test error below BN + SGD's", f"by ≥ {ahead:g}", "", None, why),)
    mine, its = (median(_selected(one, "test")) for one in (ours, bn))
    part, level = share(ours, bn, "test", "examples")
    found = [
        SheetTarget(
            "test error below BN + SGD's",
            f"by ≥ {ahead:g} points" if ahead else "at all",
            f"{ours.point.label} {number(mine)} %, BN + SGD {number(its)} %",
            mine <= its - ahead if ahead else mine < its,
        ),
        SheetTarget(
            "BN + SGD's final test error in half the epochs",
            "after ≤ 0.5 of its epochs",
            f"{ours.point.label} at {number(level)} % "
            + ("not reached" if part is None else f"after {part:.3g}"),
            part is not None and part <= 0.5,
        ),
    ]
    there = results.there
    if all(key in there for key in _STATISTICS):
        varied, plain = (median(_selected(there[key], "test")) for key in _STATISTICS[1:])
        found.append(
            SheetTarget(
                "the paper: statistics of augmented images generalise better",
                "test error below that with statistics of plain images",
                f"{number(varied)} % and {number(plain)} %",
                varied < plain,
                f"standard error of one test error: {_resolution(varied, results):.2g} points",
            )
        )
    return tuple(found)
