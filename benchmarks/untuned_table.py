"""The tables of `benchmarks.untuned`, from trials that are done."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import peers
from benchmarks.untuned_times import Times
from benchmarks.untuned_trials import Trial
from benchmarks.untuned_workloads import WORKLOADS


@dataclass(frozen=True)
class Entry:
    """One method on one workload.

    Attributes:
        rate: The one in force; None before all rates are tried, or if none trains.
        at_end: Whether it is the least or the greatest of those tried.
        trials: One for each seed, at that rate.
        note: Why there are none.
    """

    workload: str
    method: str
    rate: float | None
    at_end: bool
    trials: tuple[Trial, ...]
    note: str = ""

    @property
    def label(self) -> str:
        """What the table calls the method."""
        if self.method == "prong" and WORKLOADS[self.workload].normalised:
            return "PRONG⁺"
        return peers.METHODS[self.method].label

    @property
    def final(self) -> float:
        """Training loss at the end, the median over seeds."""
        return statistics.median(trial.final for trial in self.trials)


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial that ends at the least loss, or None if none ends at a finite one."""
    finite = [trial for trial in trials if math.isfinite(trial.final)]
    return min(finite, key=lambda trial: trial.final, default=None)


def loss_at(trial: Trial, share: float) -> float:
    """Return the training loss at the first mark at or after a share of the updates."""
    marks = trial.job.marks
    at = next(i for i, mark in enumerate(marks) if mark >= share * trial.job.updates - 1e-9)
    return trial.losses[at]


def share_to(trial: Trial, level: float) -> float:
    """Return the first mark at which the loss is at most `level`, as a share of the updates.

    Infinite if it never is.
    """
    for mark, loss in zip(trial.job.marks, trial.losses, strict=True):
        if loss <= level:
            return mark / trial.job.updates
    return math.inf


def updates_to(prong: Entry, level: float) -> float:
    """Return PRONG's share of the updates to a loss, the median over seeds."""
    return statistics.median(share_to(trial, level) for trial in prong.trials)


def time_to(prong: Entry, other: Entry, share: float, times: Times) -> float:
    """Return PRONG's time for a share of the updates in units of the other's whole training.

    The whitened start counts in it.
    """
    updates = prong.trials[0].job.updates
    return (times.start["prong"] + share * updates * times.step("prong")) / (
        updates * times.step(other.method)
    )


def first_order(entries: Sequence[Entry]) -> Entry | None:
    """Return the first-order baseline that ends at the least training loss."""
    candidates = [
        entry
        for entry in entries
        if peers.METHODS[entry.method].first_order and entry.trials and math.isfinite(entry.final)
    ]
    return min(candidates, key=lambda entry: entry.final, default=None)


def difference(prong: Entry, other: Entry) -> str:
    """Return the difference in test error, PRONG's minus the other's, with a 95 % interval.

    Student's, over seeds: both methods start alike and see the same batches.
    """
    from scipy.stats import t

    gaps = [own.error - its.error for own, its in zip(prong.trials, other.trials, strict=False)]
    if not all(math.isfinite(gap) for gap in gaps):
        return "not finite"
    mean = statistics.mean(gaps)
    if len(gaps) < 2:
        return f"{mean:+.3g}"
    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{mean:+.3g} ({mean - half:+.3g} to {mean + half:+.3g})"


def table(entries: Sequence[Entry], times: dict[str, Times]) -> str:
    """Return the Markdown table of all methods."""
    lines = [
        "| workload | method | rate | training loss at 25 % | at 50 % | at the end "
        "| test error (least–most) | time of a step ÷ SGD's "
        "| PRONG at this row's final loss after, of the updates | of the time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        group = [one for one in entries if one.workload == entry.workload]
        cells = [entry.workload, entry.label, *_cells(entry, group, times.get(entry.workload))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(entry: Entry, group: Sequence[Entry], times: Times | None) -> list[str]:
    ratio = f"{times.ratio(entry.method):.2f}" if _timed(entry, times) else "–"
    if not entry.trials:
        return [entry.note, "–", "–", "–", "–", ratio, "–", "–"]
    losses = [
        statistics.median(loss_at(trial, share) for trial in entry.trials)
        for share in (0.25, 0.5, 1.0)
    ]
    errors = [trial.error for trial in entry.trials]
    spread = f"{_short(statistics.median(errors))} ({_short(min(errors))}–{_short(max(errors))})"
    rate = f"{entry.rate:g}{'*' * entry.at_end}"
    return [rate, *map(_short, losses), spread, ratio, *_reach(entry, group, times)]


def _reach(entry: Entry, group: Sequence[Entry], times: Times | None) -> tuple[str, str]:
    prong = next((one for one in group if one.method == "prong" and one.trials), None)
    if prong is None or entry.method == "prong" or not math.isfinite(entry.final):
        return "–", "–"
    share = updates_to(prong, entry.final)
    if not math.isfinite(share):
        return "not reached", "not reached"
    if not (_timed(prong, times) and _timed(entry, times)):
        return f"{share:.0%}", "–"
    assert times is not None
    return f"{share:.0%}", f"{time_to(prong, entry, share, times):.0%}"


def _timed(entry: Entry, times: Times | None) -> bool:
    return times is not None and entry.method in times.turns


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def summary(entries: Sequence[Entry], times: dict[str, Times]) -> str:
    """Return the Markdown table of what PRONG needs to reach the best first-order baseline."""
    lines = [
        "| workload | best first-order baseline | its final training loss | PRONG's "
        "| PRONG there after, updates | seconds | test error, PRONG's − its (95 % interval) |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload in dict.fromkeys(entry.workload for entry in entries):
        group = [entry for entry in entries if entry.workload == workload]
        prong = next((one for one in group if one.method == "prong" and one.trials), None)
        other = first_order(group)
        if prong is None or other is None:
            continue
        lines.append(f"| {' | '.join(_summary(prong, other, times.get(workload)))} |")
    return "\n".join(lines)


def _summary(prong: Entry, other: Entry, times: Times | None) -> list[str]:
    share = updates_to(prong, other.final)
    updates = seconds = "not reached"
    if math.isfinite(share):
        total = prong.trials[0].job.updates
        updates = f"{share * total:.0f} of {total} ({share:.0%})"
        seconds = "–"
        if _timed(prong, times) and _timed(other, times):
            assert times is not None
            part = time_to(prong, other, share, times)
            whole = total * times.step(other.method)
            seconds = f"{part * whole:.2g} of {whole:.2g} ({part:.0%})"
    baseline = f"{other.label}, {other.rate:g}"
    losses = [_short(other.final), _short(prong.final)]
    return [prong.workload, baseline, *losses, updates, seconds, difference(prong, other)]
