"""Which trainings `benchmarks.untuned` needs, and which of them are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import peers, untuned_table, untuned_trials
from benchmarks.untuned_table import Entry
from benchmarks.untuned_trials import Job, Trial
from benchmarks.untuned_workloads import WORKLOADS

RATE = 0.03
"""PRONG's, for every network."""

_ADAM = (3e-4, 0.001, 0.003, 0.01)
RATES = {
    "sgd": {
        "mean": (0.01, 0.03, 0.1, 0.3),
        "sum": (3e-4, 0.001, 0.003, 0.01),
        "sum, normalised": (0.001, 0.003, 0.01, 0.03),
    },
    "rmsprop": {
        "mean": (1e-4, 3e-4, 0.001, 0.003),
        "sum": (3e-5, 1e-4, 3e-4, 0.001),
        "sum, normalised": (1e-4, 3e-4, 0.001, 0.003),
    },
    "adam": {"mean": _ADAM, "sum": _ADAM, "sum, normalised": _ADAM},
}
"""Four for each kind of optimizer and of workload."""


@dataclass
class Work:
    """What is asked for, and what there is of it.

    Attributes:
        pairs: Workloads and their methods, in the table's order.
        seeds: How many.
        share: Of the updates that are made; 1 but for a quick look.
        out: Where trials are kept.
        done: Trials that there are.
        paths: Where each job's trial is kept.
    """

    pairs: list[tuple[str, str]]
    seeds: int
    share: float
    out: Path
    done: dict[Job, Trial] = field(default_factory=dict)
    paths: dict[Job, Path] = field(default_factory=dict)

    def rates(self, workload: str, method: str) -> tuple[float, ...]:
        """Return the rates to try."""
        name, optimizer = untuned_trials.resolved(workload, method)
        known = peers.METHODS[optimizer]
        return RATES[known.rates][WORKLOADS[name].rates] if known.tuned else (RATE,)

    def jobs(self, workload: str, method: str, rate: float, seeds: Sequence[int]) -> list[Job]:
        """Return the trainings of a method at a rate."""
        updates = max(1, round(self.share * WORKLOADS[workload].updates))
        names = untuned_trials.resolved(workload, method)
        return [Job(*names, rate, seed, updates) for seed in seeds]

    def tried(self, workload: str, method: str) -> list[Job]:
        """Return one training for each rate."""
        return [
            job
            for rate in self.rates(workload, method)
            for job in self.jobs(workload, method, rate, [0])
        ]

    def entry(self, workload: str, method: str) -> Entry:
        """Return a method's row, from what is done."""
        jobs = self.tried(workload, method)
        trials = [self.done[job] for job in jobs if job in self.done]
        nothing = Entry(workload, method, None, False, ())
        if len(trials) < len(jobs):
            return Entry(**{**vars(nothing), "note": f"{len(trials)} of {len(jobs)} rates tried"})
        chosen = untuned_table.best(trials)
        if chosen is None:
            return Entry(**{**vars(nothing), "note": "no rate stays finite"})
        rate = chosen.job.rate
        seeded = self.jobs(workload, method, rate, range(self.seeds))
        rates = self.rates(workload, method)
        return Entry(
            workload,
            method,
            rate,
            len(rates) > 1 and rate in (min(rates), max(rates)),
            tuple(self.done[job] for job in seeded if job in self.done),
        )

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Return those that no whole trial is kept of, each once."""
        for job in dict.fromkeys(jobs):
            if job not in self.paths:
                self.paths[job] = untuned_trials.place(self.out, job)
                trial = untuned_trials.load(self.paths[job], job)
                if trial is not None:
                    self.done[job] = trial
        return [job for job in dict.fromkeys(jobs) if job not in self.done]

    def first(self) -> list[Job]:
        """Return the trainings that choose the rates, and all of the method that has one rate."""
        return self.missing(
            [
                job
                for pair in self.pairs
                for job in (
                    self.tried(*pair)
                    if peers.METHODS[pair[1]].tuned
                    else self.jobs(*pair, RATE, range(self.seeds))
                )
            ]
        )

    def second(self) -> list[Job]:
        """Return the trainings with the other seeds, at the rates that are chosen by now."""
        entries = [self.entry(*pair) for pair in self.pairs]
        return self.missing(
            [
                job
                for entry in entries
                if entry.rate is not None
                for job in self.jobs(entry.workload, entry.method, entry.rate, range(self.seeds))
            ]
        )

    def later(self) -> int:
        """Return how many trainings with other seeds are to come once all rates are chosen."""
        tuned = {untuned_trials.resolved(*pair) for pair in self.pairs}
        tuned = {pair for pair in tuned if peers.METHODS[pair[1]].tuned}
        done = sum(job.seed > 0 and (job.workload, job.method) in tuned for job in self.done)
        return max(0, len(tuned) * (self.seeds - 1) - done)
