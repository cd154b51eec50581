"""The scores that are chosen among: the same function for arrays and as operators of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipelines.drift.estimates import joint_whitening, tail
from pipelines.systems.onnx.drift_graph import DriftGraph, Tail, Whitener

Array = NDArray[Any]
Signals = Mapping[str, Array]
"""Name of a number that each example has → its values [n]."""
SOFTMAX = "softmax"
"""The signal and score that others are held against: 1 − the largest probability."""
_FLOORS = {"": 0.0, " (rarest fifth)": np.log(5), " (rarest twentieth)": np.log(20)}


class Candidate(Protocol):
    """A score: larger is further from the training data."""

    def scores(self, signals: Signals) -> Array:
        """Return the score [n] of examples, float64."""

    def add_to(self, graph: DriftGraph, names: Mapping[str, str]) -> str:
        """Add the same to a graph that has the signals under these names; return its tensor."""


@dataclass(frozen=True)
class One:
    """One signal as it is."""

    signal: str

    def scores(self, signals: Signals) -> Array:
        """Return the signal."""
        return signals[self.signal]

    def add_to(self, graph: DriftGraph, names: Mapping[str, str]) -> str:
        """Return the signal's tensor."""
        return names[self.signal]


@dataclass(frozen=True)
class Layers:
    """‖U(t − μ)‖² of the log distances t at all layers.

    So a distance that is unusually small counts as well (of blurred images, say), and so does one
    that does not go with those at other layers.
    """

    signals: tuple[str, ...]
    whitener: Whitener

    def scores(self, signals: Signals) -> Array:
        """Return the distance."""
        off = np.stack([signals[name] for name in self.signals], axis=1) - self.whitener.centre
        found: Array = ((off @ self.whitener.matrix.T) ** 2).sum(axis=1)
        return found

    def add_to(self, graph: DriftGraph, names: Mapping[str, str]) -> str:
        """Return the tensor of the distance."""
        return graph.joint([names[name] for name in self.signals], self.whitener)


@dataclass(frozen=True)
class Combined:
    """Fisher's sum of two rarities, −log p₁ − log p₂; layers speak above a floor only."""

    layers: Layers
    layers_tail: Tail
    answer: One
    answer_tail: Tail
    floor: float

    def scores(self, signals: Signals) -> Array:
        """Return the sum."""
        of_layers = rarity(self.layers.scores(signals), self.layers_tail) - self.floor
        answers = rarity(self.answer.scores(signals), self.answer_tail)
        found: Array = np.maximum(of_layers, 0) + answers
        return found

    def add_to(self, graph: DriftGraph, names: Mapping[str, str]) -> str:
        """Return the tensor of the sum."""
        of_layers = graph.rarity(self.layers.add_to(graph, names), self.layers_tail)
        answers = graph.rarity(self.answer.add_to(graph, names), self.answer_tail)
        return graph.sum(graph.over(of_layers, self.floor), answers)


def rarity(values: Array, calibrated: Tail) -> Array:
    """Return −log p [n] of scores [n]; see `Tail`."""
    count = len(calibrated.values)
    parts = (values[:, None] - calibrated.values[:-1]) / calibrated.gaps
    share = (count - parts.clip(0, 1).sum(axis=1)) / (count + 1)
    beyond = np.log(10) + (values - calibrated.start) / calibrated.scale
    found: Array = np.where(values > calibrated.start, beyond, -np.log(share))
    return found


def candidates(signals: Signals, of_layers: Sequence[str]) -> dict[str, Candidate]:
    """Return name → score, fitted to the signals of examples that are as the training data.

    Args:
        signals: Of held-out examples.
        of_layers: Those of `signals` that are log distances at layers; each other one is a score by
            itself.
    """
    found: dict[str, Candidate] = {name: One(name) for name in signals if name not in of_layers}
    if not of_layers:
        return found
    whitener = joint_whitening(np.stack([signals[name] for name in of_layers], axis=1))
    if whitener is None:
        return found
    layers = Layers(tuple(of_layers), whitener)
    found["layers"] = layers
    if SOFTMAX in signals:
        tails = tail(layers.scores(signals)), tail(signals[SOFTMAX])
        if tails[0] is not None and tails[1] is not None:
            for told, floor in _FLOORS.items():
                combined = Combined(layers, tails[0], One(SOFTMAX), tails[1], float(floor))
                found[f"layers{told} + softmax"] = combined
    return found


def auroc(inside: Array, outside: Array) -> float:
    """Return the chance that an example from outside has the larger score; ties count half."""
    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    n, m = len(inside), len(outside)
    return float((ranks.sum() - m * (m + 1) / 2) / (n * m))


def chosen(table: Mapping[str, Mapping[str, float]]) -> str:
    """Return the candidate with the largest mean AUROC less what it lacks to the softmax.

    Args:
        table: Candidate → shift → AUROC; not empty.
    """
    base = table.get(SOFTMAX, {})

    def worth(name: str) -> float:
        row = table[name]
        lacks = [max(0.0, base.get(shift, 0.0) - found) for shift, found in row.items()]
        return float(np.mean(list(row.values())) - np.mean(lacks)) if row else 0.0

    return max(sorted(table), key=worth)
