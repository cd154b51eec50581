"""Gates that run a version in ONNX Runtime, as it will be run once it is released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from pipelines.gates.finding import Finding, failed, held_to, passed


def runtime(answered: int, finite: bool, where: str) -> Finding:
    """Does the real runtime load the registry's own bytes and answer real examples?

    Args:
        answered: Examples of the gate split that were answered, each alone.
        finite: Whether every answer was a finite number.
        where: Runtime and device, as the session itself says.
    """
    if not finite:
        return failed("runtime", f"an answer is not finite, on {where}")
    return passed("runtime", f"{answered} real examples answered on {where}")


def inputs(refused: Mapping[str, bool]) -> Finding:
    """Does the runtime refuse an input of the wrong type or shape?

    Args:
        refused: What was tried → whether it was refused.
    """
    taken = [name for name, so in refused.items() if not so]
    if taken:
        return failed("inputs", f"answered instead of refused: {', '.join(taken)}")
    return passed("inputs", f"refused: {', '.join(refused)}")


def extremes(finite: Mapping[str, bool]) -> Finding:
    """Are the answers to extreme inputs finite?

    Args:
        finite: Input → whether its raw outputs and answers are, and probabilities sum to 1.
    """
    wrong = [name for name, so in finite.items() if not so]
    if wrong:
        return failed("extremes", f"not finite, or no answers at all: {', '.join(wrong)}")
    return passed("extremes", f"finite: {', '.join(finite)}")


def latency(ratios: Mapping[int, Sequence[float]] | None, limit: float) -> Finding:
    """Does the version answer about as fast as the champion?

    A ratio, in turns, because an absolute time says more about the machine; the median over the
    rounds, so that a single pause does not count.

    Args:
        ratios: Batch → time of the version over time of the champion, one per round; None without
            a champion.
        limit: `gates.latency`.
    """
    if ratios is None:
        return Finding("latency", "pass", None, limit, "no champion to compare with")
    medians = {batch: median(found) for batch, found in ratios.items()}
    said = ", ".join(f"× {value:.2f} at batch {batch}" for batch, value in medians.items())
    rounds = min(len(found) for found in ratios.values())
    return held_to("latency", max(medians.values()), limit, f"{said}; medians of {rounds} rounds")
