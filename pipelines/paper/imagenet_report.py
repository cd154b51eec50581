"""What the report of Fig. 4c-d shows."""

from __future__ import annotations

from pipelines.paper.autoencoder_report import settings
from pipelines.paper.experiment import Curve, CurveMark, Results, Trained
from pipelines.paper.method_comparison import at_end, charts, share
from pipelines.paper.sheet import Sheet, SheetTable, SheetTarget, median, number, spread

_ERROR = "top-1 error, %"
_BN, _OURS = "bn-sgd", "prong-bn"
_CHARTS = {"train": "(c) Training error", "validation": "(d) Validation error"}
_NAMES = {_OURS: "PRONG⁺", _BN: "batch normalisation"}
_STATED = {_OURS: ("28.9", "around 36"), _BN: ("28.6", "46")}


def report(results: Results) -> Sheet:
    """Return the content of the report."""
    shown = charts(results.there.values(), _CHARTS, _ERROR, y_axis="linear")
    tables = (_stated(results), _labels(results), _ranks(results), _input(results))
    return Sheet(shown, (*tables, settings(results)), _targets(results))


def after(curve: Curve, updates: int) -> CurveMark:
    """Return the first mark at which so many updates are made; the last if there are fewer."""
    return next((mark for mark in curve.marks if mark.update >= updates), curve.last)


def _early(one: Trained, updates: int) -> list[float]:
    return [after(curve, updates).figures["validation"] for curve in one.curves.values()]


def _stated(results: Results) -> SheetTable:
    updates, rows = int(results.scale.options["after"]), []
    for key, (end, early) in _STATED.items():
        one = results.there.get(key)
        ends = spread(at_end(one, "validation")) if one is not None else "not trained"
        soon = spread(_early(one, updates)) if one is not None else "not trained"
        rows.append((f"validation error at the end: {_NAMES[key]}, %", end, ends))
        place = f"{updates:,} updates (paper: 100,000)"
        rows.append((f"validation error after {place}: {_NAMES[key]}, %", early, soon))
    card = results.card
    note = (
        f"Here {card['train']:,} images of {card['size']} × {card['size']} pixels in "
        f"{card['class_count']} classes; the paper's are 1.3 million in 1,000."
    )
    return SheetTable(
        "The paper's numbers beside ours", ("what", "paper", "here"), tuple(rows), note
    )


def _labels(results: Results) -> SheetTable:
    card = results.card
    counts = tuple((name, f"{count:,}") for name, count in card["classes"].items())
    more = int(card["class_count"]) - len(counts)
    note = "Training images."
    if card["source"] == "imagenet-sample":
        note += (
            " These labels are ours, made of the classes' numbers: the sample has one image of "
            "each class of ImageNet, so that its own classes cannot be learnt."
        )
    if more > 0:
        note += f" And {more} further classes."
    return SheetTable("What the labels are", ("label", "images"), counts, note)


def _ranks(results: Results) -> SheetTable:
    rows: list[tuple[str, ...]] = []
    bn = results.there.get(_BN)
    for one in results.there.values():
        part = share(one, bn, "validation", "update")[0] if bn is not None else None
        curves = list(one.curves.values())
        rows.append(
            (
                one.point.label,
                spread(at_end(one, "train")),
                spread([min(m.figures["validation"] for m in curve.marks) for curve in curves]),
                spread(at_end(one, "validation")),
                "not reached" if part is None else f"{100 * part:.0f} %",
                number(median([curve.last.seconds for curve in curves])),
                number(median([curve.refresh for curve in curves])),
            )
        )
    for one in results.trained.values():
        if one.key not in results.there:
            rows.append((one.point.label, one.missing or "not trained", *["–"] * 5))
    columns = (
        "method", "training error, %", "least validation error, %", "at the end, %",
        "at BN's final error after, of its updates", "seconds", "of them reparametrisations",
    )  # fmt: skip
    return SheetTable("Errors", columns, tuple(rows), "Median (least to most) over seeds.")


def _input(results: Results) -> SheetTable:
    card = results.card
    rows = [
        ("decoding and fitting, once, when the images are read", number(float(card["decoding"]))),
        ("batches that are shifted and mirrored, in training", number(float(card["batches"]))),
    ]
    for one in results.there.values():
        figures = [curve.figures for curve in one.curves.values()]
        rate = median([found["images_per_second"] for found in figures])
        ranks = median([found["ranks"] for found in figures])
        rows.append((f"training of {one.point.label}, all {ranks:g} ranks", number(rate)))
    return SheetTable(
        "The input pipeline beside what training takes",
        ("what", "images in a second"),
        tuple(rows),
        "The first two are of one core: images in a second of processor time.",
    )


def _targets(results: Results) -> tuple[SheetTarget, ...]:
    ours, bn = results.there.get(_OURS), results.there.get(_BN)
    updates = int(results.scale.options["after"])
    what = f"the paper: after {updates:,} updates, PRONG⁺ is below batch normalisation"
    if ours is None or bn is None:
        why = "one of the two was not trained"
        return (SheetTarget(what, "lower validation error", "", None, why),)
    mine, its = (median(_early(one, updates)) for one in (ours, bn))
    part, level = share(ours, bn, "validation", "update")
    said = "not reached" if part is None else f"after {part:.3g} of its updates"
    return (
        SheetTarget(
            what, "lower validation error", f"{number(mine)} % and {number(its)} %", mine < its
        ),
        SheetTarget(
            "PRONG⁺ comes to batch normalisation's final validation error",
            "in fewer updates",
            f"{number(level)} %: {said}",
            part is not None and part < 1,
        ),
    )
