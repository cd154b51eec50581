"""What a step takes in `benchmarks.untuned`: methods take turns, apart from all trainings."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import peers, untuned_trials
from benchmarks.untuned_data import Examples
from benchmarks.untuned_workloads import WORKLOADS

TURNS = 3
WARMING = 5
"""Steps of each method before the first turn."""


@dataclass(frozen=True)
class Times:
    """Seconds of one workload's methods.

    Attributes:
        turns: Mean seconds of a step in each turn.
        start: Seconds that a whitened start took; 0 without one.
    """

    turns: dict[str, tuple[float, ...]]
    start: dict[str, float]

    def ratio(self, method: str) -> float:
        """Return a step's time in units of SGD's in the same turn, the median over turns."""
        pairs = zip(self.turns[method], self.turns["sgd"], strict=True)
        return statistics.median(own / base for own, base in pairs)

    def step(self, method: str) -> float:
        """Return a step's seconds."""
        return self.ratio(method) * statistics.median(self.turns["sgd"])


@dataclass(frozen=True)
class Clock:
    """What is to be timed: one workload's methods, on so many threads.

    Attributes:
        share: Of a method's cycle that a turn has; 1 but for a quick look.
    """

    workload: str
    methods: tuple[str, ...]
    threads: int
    share: float

    def path(self, out: Path) -> Path:
        """Return the file of the times."""
        settings = [asdict(self), TURNS, untuned_trials.circumstances(self.methods)]
        return out / f"times--{self.workload}--{untuned_trials.digest(settings)}.json"


def take(clock: Clock, rates: Mapping[str, float], examples: Examples) -> Times:
    """Let the methods take turns of one cycle each, so that refreshes count in proportion."""
    trainings, start, turns = {}, {}, {}
    lost = set()
    batch = WORKLOADS[clock.workload].batch
    for method in clock.methods:
        name, optimizer = untuned_trials.resolved(clock.workload, method)
        torch.manual_seed(0)
        trainings[method] = peers.begin(
            peers.METHODS[optimizer],
            WORKLOADS[name].build(),
            rates[method],
            examples.first(2048, batch),
        )
        start[method], turns[method] = trainings[method].start, []
    for turn in range(TURNS + 1):
        for method, training in trainings.items():
            length = math.ceil(peers.METHODS[method].cycle * clock.share) if turn else WARMING
            generator = torch.Generator().manual_seed(turn)
            batches = [examples.draw(generator, batch) for _ in range(length)]
            begun = time.perf_counter()
            if method not in lost and not all(
                math.isfinite(training.step(x, labels)) for x, labels in batches
            ):
                lost.add(method)
            if turn:
                turns[method].append((time.perf_counter() - begun) / length)
    kept = {method: tuple(seconds) for method, seconds in turns.items() if method not in lost}
    return Times(kept, {method: start[method] for method in kept})


def save(path: Path, times: Times) -> None:
    """Keep the times."""
    untuned_trials.write(path, asdict(times))


def load(path: Path, clock: Clock) -> Times | None:
    """Return kept times, if there are any and they are whole."""

    def parse(content: object) -> Times:
        found = untuned_trials.fields(content, ("turns", "start"))
        turns, start = found["turns"], found["start"]
        if not isinstance(turns, dict) or not isinstance(start, dict) or set(turns) != set(start):
            raise ValueError("turns and start are not of the same methods")
        if "sgd" not in turns or not set(turns) <= set(clock.methods):
            raise ValueError(f"times of {', '.join(turns)}, expected {', '.join(clock.methods)}")
        for method, seconds in turns.items():
            if not isinstance(seconds, list) or len(seconds) != TURNS:
                raise ValueError(f"turns of {method} = {seconds}, expected {TURNS} numbers")
        numbers = {
            method: tuple(untuned_trials.number(method, one) for one in seconds)
            for method, seconds in turns.items()
        }
        if not all(all(seconds) for seconds in numbers.values()):
            raise ValueError("a step took no time")
        return Times(
            numbers, {method: untuned_trials.number(method, one) for method, one in start.items()}
        )

    return untuned_trials.read(path, parse)
