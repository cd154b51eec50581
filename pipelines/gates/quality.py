"""Gates that hold a version's answers to the champion's, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.gates.finding import Finding, held_to, one_line
from pipelines.tasks.interval import images_needed, upper_bound

Wrong = NDArray[np.bool_]
"""Per image, whether an answer is wrong: [n]."""
_ROUNDING = 1e-9  # shares of whole counts, compared so that rounding does not decide
_SHOWN = 5


def champion(
    wrong: Wrong, champion_wrong: Wrong | None, best_error: float | None, margin: float
) -> Finding:
    """Is the version as good as the champion, and as the best champion there ever was?

    Against the champion the upper 95 % bound of the paired difference counts, not the difference
    itself: a version that may well be worse by more than the margin has not shown that it is not.
    Against the best ever the error itself counts, so that many small steps down do not add up.

    Args:
        wrong: Of the version on the gate split, [n], n ≥ 1.
        champion_wrong: Of the champion on the same images; None without a champion.
        best_error: The lowest error of any champion on this split, a share, if one is known.
        margin: `gates.margin`.
    """
    n, errors = len(wrong), int(wrong.sum())
    figures: dict[str, float] = {"error": errors / n, "images": n}
    said = f"{errors} of {n} wrong"
    if champion_wrong is None and best_error is None:
        return Finding("champion", "pass", None, margin, f"{said}; the first champion", figures)
    bests = [] if best_error is None else [best_error]
    if champion_wrong is not None:
        old = int(champion_wrong.sum())
        figures["champion_error"] = old / n
        bests.append(old / n)
        lost = int((wrong & ~champion_wrong).sum())
        won = int((~wrong & champion_wrong).sum())
        bound = upper_bound(lost, won, n)
        said += f", the champion {old}; {lost} lost, {won} won: at most {bound:+.2%} error"
        if bound > margin:
            return held_to("champion", bound, margin, said + _too_few(n, margin), **figures)
    slid = errors / n - min(bests)
    if slid > margin + _ROUNDING or champion_wrong is None:
        said += f"; the best champion ever had {min(bests):.2%}: {slid:+.2%} since"
        return held_to("champion", slid, margin, said, **figures)
    return held_to("champion", bound, margin, said, **figures)


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


def floor(wrong: Wrong, labels: NDArray[np.int64], names: Sequence[str]) -> Finding:
    """Is the version better than one that always answers the most frequent class?

    The upper 95 % bound of the paired difference must be below zero: a version that may well know
    no more than the shares of the classes is not let through, also without a champion.

    Args:
        wrong: Of the version on the gate split, [n], n ≥ 1.
        labels: Positions in `names`, [n].
        names: The classes.
    """
    n, frequent = len(wrong), int(np.bincount(labels).argmax())
    always = labels != frequent
    lost, won = int((wrong & ~always).sum()), int((~wrong & always).sum())
    bound = upper_bound(lost, won, n)
    said = f"{int(wrong.sum())} of {n} wrong, always {names[frequent]!r} {int(always.sum())}: "
    said += f"at most {bound:+.2%} error"
    if bound >= 0 and upper_bound(0, int(always.sum()), n) >= 0:
        said += "; on these gate images not even right answers show more: raise data.gate"
    return Finding("floor", "pass" if bound < 0 else "fail", bound, 0.0, one_line(said))


def classes(
    wrong: Wrong,
    champion_wrong: Wrong | None,
    labels: NDArray[np.int64],
    names: Sequence[str],
    margin: float,
) -> Finding:
    """Does every class keep its answers?

    A class is lost if, net, more than the margin of its images went from right to wrong, and more
    than one image or all of them: one image of several is not evidence, all of them are. A class
    without a gate image cannot be judged; it does not block, it is counted and said.

    Args:
        wrong: Of the version on the gate split, [n].
        champion_wrong: Of the champion on the same images; None without a champion.
        labels: Positions in `names`, [n].
        names: The classes.
        margin: `gates.class_margin`.
    """
    count = len(names)
    images = np.bincount(labels, minlength=count)
    absent = int((images == 0).sum())
    note = f"; {absent} of {count} classes have no gate image: not judged" if absent else ""
    if champion_wrong is None:
        return Finding("classes", "pass", None, margin, f"no champion to lose against{note}")
    change = wrong.astype(np.int64) - champion_wrong
    net = np.bincount(labels, weights=change, minlength=count).astype(np.int64)
    share = net / np.maximum(images, 1)
    evident = ((net > 1) | (net == images)) & (images > 0)
    lost = evident & (share > margin + _ROUNDING)
    order = [at for at in np.lexsort((-share, ~lost)) if net[at] > 0]
    shown = [f"{names[at]}: {net[at]} of {images[at]}" for at in order[:_SHOWN]]
    said = f"net lost of class {', '.join(shown)}" if shown else "no class is worse"
    said += f" and {len(order) - _SHOWN} more classes" if len(order) > _SHOWN else ""
    worst = float(share[evident].max(initial=0.0))
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
        errors: Disturbance → share of wrong answers.
        champion_errors: Likewise of the champion on the same images; None without a champion.
        finite: Whether every answer was.
        margin: `gates.robustness`.
    """
    said = ", ".join(f"{name}: {error:.2%} wrong" for name, error in errors.items())
    if not finite:
        return Finding(gate, "fail", None, margin, f"an answer is not finite; {said}")
    if champion_errors is None:
        return Finding(gate, "pass", None, margin, f"{said}; no champion to compare with")
    worst = max(errors, key=lambda name: errors[name] - champion_errors[name])
    rise = errors[worst] - champion_errors[worst]
    return held_to(gate, rise, margin, f"{said}; the champion {champion_errors[worst]:.2%} {worst}")
