"""Gates that hold a version's answers to the champion's, example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.gates.finding import Finding, held_to, one_line
from pipelines.tasks.interval import images_needed, upper_bound
from pipelines.tasks.task import Subset, Task

Errors = NDArray[np.float64]
"""The error of each example: [n]; see `pipelines.tasks.task.Task`."""
_ROUNDING = 1e-9  # shares of whole counts, compared so that rounding does not decide
_SHOWN = 5


def champion(
    task: Task,
    errors: Errors,
    champion_errors: Errors | None,
    best_error: float | None,
    margin: float,
) -> Finding:
    """Is the version as good as the champion, and as the best champion there ever was?

    Against the champion the upper 95 % bound of the paired difference counts, not the difference
    itself: a version that may well be worse by more than the margin has not shown that it is not.
    Against the best ever the error itself counts, so that many small steps down do not add up.

    Args:
        task: Of the data.
        errors: Of the version on the gate split, [n], n ≥ 1.
        champion_errors: Of the champion on the same examples; None without a champion.
        best_error: The lowest error of any champion on this split, a share, if one is known.
        margin: `gates.margin`.
    """
    n, error = len(errors), float(errors.mean())
    figures: dict[str, float] = {"error": error, "images": n}
    said = _told(task, errors)
    if champion_errors is None and best_error is None:
        return Finding("champion", "pass", None, margin, f"{said}; the first champion", figures)
    bests = [] if best_error is None else [best_error]
    if champion_errors is not None:
        old = float(champion_errors.mean())
        figures["champion_error"] = old
        bests.append(old)
        bound = task.rise(errors, champion_errors)
        said += f", {_against(task, errors, champion_errors)}: at most {bound:+.2%} error"
        if bound > margin:
            few = _too_few(n, margin) if task.counts else ""
            return held_to("champion", bound, margin, said + few, **figures)
    slid = error - min(bests)
    if slid > margin + _ROUNDING or champion_errors is None:
        said += f"; the best champion ever had {min(bests):.2%}: {slid:+.2%} since"
        return held_to("champion", slid, margin, said, **figures)
    return held_to("champion", bound, margin, said, **figures)


def _told(task: Task, errors: Errors) -> str:
    if task.counts:
        return f"{int(errors.sum())} of {len(errors)} wrong"
    return f"{errors.mean():.2%} {task.error_means} of {len(errors)} examples"


def _against(task: Task, errors: Errors, champion_errors: Errors) -> str:
    if task.counts:
        lost = int((errors > champion_errors).sum())
        won = int((errors < champion_errors).sum())
        return f"the champion {int(champion_errors.sum())}; {lost} lost, {won} won"
    return f"the champion {champion_errors.mean():.2%}"


def _too_few(images: int, margin: float) -> str:
    """Return advice where not even equal answers could have passed."""
    if upper_bound(0, 0, images) <= margin:
        return ""
    if margin == 0:
        return "; no number of images shows a margin of 0: raise gates.margin"
    return (
        f"; on {images} gate images not even equal answers show a margin of {margin:g}, which "
        f"takes {images_needed(margin)}: raise data.gate or gates.margin"
    )


def floor(task: Task, errors: Errors, trivial: Errors, trivial_told: str) -> Finding:
    """Is the version better than the best answer that does not look at the input?

    The upper 95 % bound of the paired difference must be below zero: a version that may well know
    no more than the shares of the classes is not let through, also without a champion.

    Args:
        task: Of the data.
        errors: Of the version on the gate split, [n], n ≥ 1.
        trivial: Of that answer, [n].
        trivial_told: What it is, such as `always 'cat'`.
    """
    bound = task.rise(errors, trivial)
    if task.counts:
        said = f"{_told(task, errors)}, {trivial_told} {int(trivial.sum())}: "
    else:
        said = f"{_told(task, errors)}, {trivial_told} {trivial.mean():.2%}: "
    said += f"at most {bound:+.2%} error"
    if bound >= 0 and task.rise(np.zeros(len(errors)), trivial) >= 0:
        said += "; on these gate images not even right answers show more: raise data.gate"
    return Finding("floor", "pass" if bound < 0 else "fail", bound, 0.0, one_line(said))


def classes(
    task: Task,
    errors: Errors,
    champion_errors: Errors | None,
    parts: Sequence[Subset],
    margin: float,
) -> Finding:
    """Does every class, or part of the data, keep its answers?

    Of a classification, a part is lost if, net, more than the margin of its examples went from
    right to wrong, and more than one example or all of them: one example of several is not
    evidence, all of them are. Of other tasks, if its error rose by more than the margin, and by
    more than chance explains (the lower 95 % bound is above 0). A part without a gate example
    cannot be judged; it does not block, it is counted and said.

    Args:
        task: Of the data.
        errors: Of the version on the gate split, [n].
        champion_errors: Of the champion on the same examples; None without a champion.
        parts: Classes, or parts by column.
        margin: `gates.class_margin`.
    """
    # Of a table there are parts beside the classes.
    one, what = ("part", "parts") if task.form.columns or not task.counts else ("class", "classes")
    absent = sum(not part.members.any() for part in parts)
    note = f"; {absent} of {len(parts)} {what} have no gate image: not judged" if absent else ""
    if champion_errors is None:
        return Finding("classes", "pass", None, margin, f"no champion to lose against{note}")
    worst = 0.0
    lost: list[tuple[float, str]] = []
    worse: list[tuple[float, str]] = []
    for part in parts:
        if not part.members.any():
            continue
        new, old = errors[part.members], champion_errors[part.members]
        net, images = float((new - old).sum()), len(new)
        share = net / images
        if net <= 0:
            continue
        evident = (
            net > 1 or round(net) == images if task.counts else -task.rise(old, new) > _ROUNDING
        )
        told = f"{part.name}: {net:.0f} of {images}" if task.counts else f"{part.name} {share:+.2%}"
        if evident:
            worst = max(worst, share)
        entry = (-share, told)
        (lost if evident and share > margin + _ROUNDING else worse).append(entry)
    order = [told for _, told in (*sorted(lost), *sorted(worse))]
    lead = f"net lost of {one}" if task.counts else "error risen of"
    said = f"{lead} {', '.join(order[:_SHOWN])}" if order else f"no {one} is worse"
    said += f" and {len(order) - _SHOWN} more {what}" if len(order) > _SHOWN else ""
    return held_to("classes", worst, margin, said + note)


def robust(
    gate: str,
    errors: Mapping[str, float],
    champion_errors: Mapping[str, float] | None,
    finite: bool,
    margin: float,
) -> Finding:
    """Does the version stand a disturbance of its input about as well as the champion?

    Args:
        gate: `noise` or `shift`.
        errors: Disturbance → error, a share.
        champion_errors: Likewise of the champion on the same images; None without a champion.
        finite: Whether every answer was.
        margin: `gates.robustness`.
    """
    if not errors:
        return Finding(gate, "pass", None, margin, "there is nothing to disturb")
    shown = list(errors.items())
    if len(shown) > _SHOWN:
        shown = sorted(shown, key=lambda item: -item[1])[:_SHOWN]
    said = ", ".join(f"{name}: {error:.2%} error" for name, error in shown)
    if not finite:
        return Finding(gate, "fail", None, margin, f"an answer is not finite; {said}")
    if champion_errors is None:
        return Finding(gate, "pass", None, margin, f"{said}; no champion to compare with")
    worst = max(errors, key=lambda name: errors[name] - champion_errors[name])
    rise = errors[worst] - champion_errors[worst]
    return held_to(gate, rise, margin, f"{said}; the champion {champion_errors[worst]:.2%} {worst}")
