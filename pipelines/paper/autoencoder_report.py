"""What the report of Fig. 3c-d shows."""

from __future__ import annotations

from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import Results, Trained
from pipelines.paper.method_comparison import (
    at_end,
    best,
    busy,
    charts,
    seconds_per_example,
    share,
)
from pipelines.paper.sheet import Sheet, SheetTable, SheetTarget, median, number, spread

_TRAIN, _TEST = "train", "test"
_ERROR = "squared error of an image"
_SECOND = ("shampoo", "soap", "muon", "k-fac")
_OURS = ("prong", "prong-bn")
_RUNTIMES = (("prong", "3.2"), ("bn-sgd", "2.3"), ("rmsprop", "9"))


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    figures = {_TRAIN: "Training error", _TEST: "Test error"}
    shown = charts(results.there.values(), figures, _ERROR)
    return Sheet(shown, (_stated(results), _ranks(results), settings(results)), _targets(results))


def _first_order(results: Results, normalised: bool | None = None) -> Trained | None:
    """Return the best first-order baseline: of all, or of those without batch normalisation."""
    keys = [
        key
        for key, one in results.there.items()
        if METHODS[one.point.method].first_order
        and (normalised is None or one.values.get("normalised") == normalised)
    ]
    return best(results, _TRAIN, keys)


def _refreshes(one: Trained) -> float:
    """Return the share of a training's time that reparametrisations take, %."""
    return median([100 * curve.refresh / curve.last.seconds for curve in one.curves.values()])


def _stated(results: Results) -> SheetTable:
    there, rows = results.there, []
    if "sgd" in there:
        one = seconds_per_example(there["sgd"])
        for key, stated in _RUNTIMES:
            found = "not trained"
            if key in there:
                batch = there[key].values.get("batch", 128)
                found = f"{number(seconds_per_example(there[key]) / one)} (batch {batch})"
            label = results.trained[key].point.label if key in results.trained else key
            rows.append((f"runtime of an epoch ÷ SGD's: {label}", stated, found))
    if "prong" in there:
        found = f"{number(_refreshes(there['prong']))} %"
        rows.append(("share of PRONG's runtime in reparametrisations", "34 %", found))
    ours = best(results, _TRAIN, _OURS)
    for key in ("sgd", "bn-sgd", "rmsprop"):
        if ours is not None and key in there:
            part, _ = share(ours, there[key], _TRAIN, "update")
            found = "not reached" if part is None else f"{number(1 / part)} times"
            label = there[key].point.label
            rows.append(
                (f"updates of {label} ÷ {ours.point.label}'s to its end", "up to 10", found)
            )
    note = (
        "The paper's times are of its own implementation on its own machines. Largest wall-clock ÷ "
        f"processor time of a training here: {number(busy(results), 2)}; well above 1, other work "
        "was in the way."
    )
    return SheetTable(
        "The paper's numbers beside ours", ("what", "paper", "here"), tuple(rows), note
    )


def _ranks(results: Results) -> SheetTable:
    baseline = _first_order(results)
    there = results.there
    rows = []
    order = sorted(there.values(), key=lambda one: median(at_end(one, _TRAIN)))
    for one in order:
        parts = ["–", "–"]
        if baseline is not None:
            parts = []
            for quantity in ("update", "seconds"):
                part, _ = share(one, baseline, _TRAIN, quantity)
                parts.append("not reached" if part is None else f"{100 * part:.0f} %")
        ratio = "–"
        if "sgd" in there:
            ratio = number(seconds_per_example(one) / seconds_per_example(there["sgd"]))
        rows.append(
            (
                one.point.label,
                spread(at_end(one, _TRAIN)),
                spread(at_end(one, _TEST)),
                *parts,
                spread([float(curve.last.update) for curve in one.curves.values()]),
                number(median([curve.last.seconds for curve in one.curves.values()])),
                ratio,
            )
        )
    for one in results.trained.values():
        if one.key not in there:
            rows.append((one.point.label, one.missing or "not trained", *["–"] * 6))
    name = baseline.point.label if baseline is not None else "baseline"
    columns = (
        "method", "training error", "test error",
        f"at the final training error of {name} after, of its updates", "of its time",
        "updates", "seconds", "time of an example ÷ SGD's",
    )  # fmt: skip
    return SheetTable(
        "Rank by updates and by time", columns, tuple(rows),
        "Best training error first; median (least to most) over seeds.",
    )  # fmt: skip


def settings(results: Results) -> SheetTable:
    """Return the settings of each method, and where they come from."""
    rows = tuple(
        (
            one.point.label,
            "as it comes" if not one.point.study else f"best of {_trials(results, one)}",
            ", ".join(f"{key} {_shown(value)}" for key, value in sorted(one.values.items())),
        )
        for one in results.there.values()
    )
    return SheetTable("Settings", ("method", "found", "settings"), rows)


def _trials(results: Results, one: Trained) -> str:
    count = results.trials.get(one.point.study, 0)
    return f"{count} trials" if not one.point.where else f"its kind in {count} trials"


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _against(
    what: str,
    one: Trained | None,
    other: Trained | None,
    quantity: str,
    limit: float,
) -> SheetTarget:
    """Return the target that a method is at another's end after a share of its updates or time."""
    named = {"update": "updates", "seconds": "wall-clock time"}[quantity]
    said = f"≤ {limit:.3g} of the {named}"
    if one is None or other is None:
        return SheetTarget(what, said, "", None, "one of the two was not trained")
    part, level = share(one, other, _TRAIN, quantity)
    who = f"{one.point.label} at {other.point.label}'s {number(level)}"
    if part is None:
        end = number(median(at_end(one, _TRAIN)))
        return SheetTarget(what, said, f"{who}: not reached (ends at {end})", False)
    return SheetTarget(what, said, f"{who} after {part:.3g}", part <= limit)


def _targets(results: Results) -> tuple[SheetTarget, ...]:
    ours = best(results, _TRAIN, _OURS)
    first, plain = _first_order(results), _first_order(results, normalised=False)
    second = best(results, _TRAIN, _SECOND)
    there = results.there
    found = [
        _against("best PRONG against the best first-order baseline", ours, first, "update", 1 / 5),
        _against("the same in time", ours, first, "seconds", 1 / 3),
        _against("best PRONG against plain SGD, momentum", ours, there.get("sgd"), "update", 0.1),
        _against(
            "PRONG without BN against the best first-order baseline without BN",
            there.get("prong"), plain, "update", 1 / 8,
        ),
        _against(
            "best PRONG against the best of Shampoo, SOAP, Muon, K-FAC", ours, second, "update", 1
        ),
        _against("the same in time", ours, second, "seconds", 1 / 2),
    ]  # fmt: skip
    for what, figure in (("training", _TRAIN), ("test", _TEST)):
        if ours is not None and first is not None:
            mine, its = median(at_end(ours, figure)), median(at_end(first, figure))
            found.append(
                SheetTarget(
                    f"{what} error at the end: ahead of the best first-order baseline",
                    f"< {number(its)} ({first.point.label})",
                    f"{number(mine)} ({ours.point.label})",
                    mine < its,
                )
            )
    return tuple(found)
