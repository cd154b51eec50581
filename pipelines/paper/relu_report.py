"""What the report of the ReLU auto-encoder shows."""

from __future__ import annotations

from pipelines.paper.autoencoder_report import settings
from pipelines.paper.experiment import CurveMark, Results, Trained
from pipelines.paper.method_comparison import at_end, best, charts, reached
from pipelines.paper.sheet import Rule, Sheet, SheetTable, SheetTarget, median, number, spread

_TRAIN, _ERROR = "train", "cross-entropy of an image, nats"
_OURS, _ADAM = ("untuned", "prong", "prong-bn"), ("adam", "bn-adam")
_LONG = tuple(f"long-{key}" for key in _ADAM)


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    figures = {_TRAIN: "Training", "test": "Test"}
    levels = [level for level, _ in results.scale.options["levels"]]
    rules = {_TRAIN: tuple(Rule(f"{level:g}", level) for level in levels)}
    shown = charts(results.there.values(), figures, _ERROR, rules=rules)
    return Sheet(shown, (_rank(results), settings(results)), tuple(_targets(results)))


def _epochs(results: Results, mark: CurveMark) -> float:
    return mark.examples / float(results.scale.options["epoch"])


def _first(one: Trained, level: float) -> list[CurveMark]:
    """Return when each seed is at a level; none if one of them is not."""
    marks = [reached(curve, _TRAIN, level) for curve in one.curves.values()]
    return [mark for mark in marks if mark is not None] if all(marks) else []


def _rank(results: Results) -> SheetTable:
    levels = [level for level, _ in results.scale.options["levels"]]
    rows = []
    for one in sorted(results.there.values(), key=lambda one: median(at_end(one, _TRAIN))):
        ends = [curve.last for curve in one.curves.values()]
        cells = [one.point.label, spread(at_end(one, _TRAIN)), spread(at_end(one, "test"))]
        cells += [number(median([_epochs(results, mark) for mark in ends]))]
        cells += [number(median([mark.seconds for mark in ends]))]
        for level in levels:
            marks = _first(one, level)
            epochs = number(median([_epochs(results, mark) for mark in marks])) if marks else "–"
            seconds = number(median([mark.seconds for mark in marks])) if marks else "–"
            cells.append(f"{epochs} epochs, {seconds} s" if marks else "not reached")
        rows.append(tuple(cells))
    columns: tuple[str, ...] = ("method", "training", "test", "epochs", "seconds")
    columns += tuple(f"to {level:g}" for level in levels)
    return SheetTable(
        "Cross-entropy at the end, and when a level is reached",
        columns,
        tuple(rows),
        "Median (least to most) over seeds; a level counts if every seed reaches it.",
    )


def _targets(results: Results) -> list[SheetTarget]:
    found = []
    ours, adam = best(results, _TRAIN, _OURS), best(results, _TRAIN, _ADAM)
    for level, epochs in results.scale.options["levels"]:
        marks = {key: _first(results.there[key], level) for key in _OURS if key in results.there}
        needed = {
            key: median([_epochs(results, mark) for mark in its])
            for key, its in marks.items()
            if its
        }
        what = f"training cross-entropy ≤ {level:g}"
        limit = f"in ≤ {epochs:g} epochs"
        if not needed:
            said = f"not reached (ends at {_end(ours)})" if ours else ""
            found.append(SheetTarget(what, limit, said, False if ours else None))
            continue
        key = min(needed, key=lambda key: needed[key])
        label = results.there[key].point.label
        found.append(SheetTarget(what, limit, f"{label}: {needed[key]:.3g}", needed[key] <= epochs))
        fastest = min(median([m.seconds for m in its]) for its in marks.values() if its)
        found.append(_time(results, level, fastest))
    if ours is not None and adam is not None:
        found.append(_at_adams_end(ours, adam))
    return found


def _end(one: Trained) -> str:
    return number(median(at_end(one, _TRAIN)))


def _time(results: Results, level: float, seconds: float) -> SheetTarget:
    """Return the target on the time to a level, beside that of the faster Adam."""
    what, limit = f"time to ≤ {level:g}", "≤ 0.5 of Adam's"
    marks = [_first(results.there[key], level) for key in (*_ADAM, *_LONG) if key in results.there]
    times = [median([mark.seconds for mark in its]) for its in marks if its]
    if times:
        part = seconds / min(times)
        return SheetTarget(what, limit, f"{part:.3g}", part <= 0.5)
    whole = [c.last.seconds for key in _LONG if key in results.there
             for c in results.there[key].curves.values()]  # fmt: skip
    if not whole:
        there = any(key in results.there for key in _ADAM)
        why = "Adam does not reach it, and was not trained for longer" if there else ""
        return SheetTarget(what, limit, "", None, why or "Adam was not trained")
    part = seconds / median(whole)
    why = "Adam does not reach it: its whole time is taken"
    return SheetTarget(what, limit, f"{part:.3g}", part <= 0.5, why)


def _at_adams_end(ours: Trained, adam: Trained) -> SheetTarget:
    mine, its = (median(at_end(one, _TRAIN)) for one in (ours, adam))
    return SheetTarget(
        "training cross-entropy after equally many epochs: below the better Adam's",
        f"< {number(its)} ({adam.point.label})",
        f"{number(mine)} ({ours.point.label})",
        mine < its,
    )
