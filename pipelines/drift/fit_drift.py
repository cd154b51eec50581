"""Fits the drift graph of a released model: from its file and the prepared data to another file.

Of each layer's inputs h mean and covariance are estimated anew, over training images and with the
network as it is released. ‖U(h − c)‖² is then the squared Mahalanobis distance to the training
data. Its logarithms at all layers are calibrated on held-out examples, because the network knows
its training examples too well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.data.prepared import Split
from pipelines.drift.candidates import SOFTMAX, Candidate, auroc, candidates, chosen
from pipelines.drift.estimates import SecondMoments, class_whitening, one_thread, whitening
from pipelines.drift.synthetic_shifts import shifted
from pipelines.systems.onnx.drift_card import MOST_ANSWERS, MOST_EXAMPLES, DriftCard
from pipelines.systems.onnx.drift_graph import DriftGraph, LayerInput, layer_inputs
from pipelines.systems.onnx.graph_runner import GraphRunner
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import ModelProto, checked_card, parse
from pipelines.tasks.form import CLASSIFICATION

Array = NDArray[Any]
MOST_LAYERS = 8
"""Layers that are looked at, evenly spread from the first to the last."""
WIDEST = 1024
"""Features of which a covariance is decomposed; wider layers are passed over."""
LEAST_HELD_OUT = 20
"""With fewer held-out examples training examples are taken for calibration."""
FALSE_ALARMS = 0.05
_WORK = 30_000_000
"""Numbers of layer inputs that are looked at: of large networks fewer examples are taken."""
_BATCH = 4_000_000
"""Numbers of layer inputs of one batch."""


@dataclass(frozen=True)
class Amounts:
    """How many examples are looked at.

    Attributes:
        train: For means and covariances.
        held_out: For calibration, and as many again for the choice and the reference.
        shifted: Of each synthetic shift.
        batch: At once.
    """

    train: int
    held_out: int
    shifted: int
    batch: int

    @classmethod
    def of(cls, numbers: int) -> Amounts:
        """Return them for a network whose layer inputs are so many numbers for each example."""
        scale = _WORK / max(numbers, 1) / 2000
        batch = int(np.clip(_BATCH // max(numbers, 1), 1, 128))
        return cls(
            int(np.clip(1500 * scale, 256, 1500)),
            int(np.clip(400 * scale, 100, 400)),
            int(np.clip(120 * scale, 40, 120)),
            batch,
        )


class _Fit:
    """One fit in progress."""

    def __init__(self, model: ModelProto, card: OnnxMetadata, layers: Sequence[LayerInput]) -> None:
        self.card, self.layers = card, layers
        self.graph = DriftGraph(model)
        self.amounts = Amounts.of(sum(int(np.prod(layer.shape)) for layer in layers))
        self.classifies = card.form.task == CLASSIFICATION
        self.signals: dict[str, str] = {}
        self.of_layers: list[str] = []

    def run(self, outputs: Sequence[str], inputs: Array) -> Iterator[list[Array]]:
        """Yield some outputs of each batch."""
        runner = GraphRunner(self.graph.with_outputs(outputs), self.card.form)
        return runner.batches(inputs, self.amounts.batch)

    def learn(self, train: Split) -> None:
        """Estimate means and covariances, and add the signals to the graph."""
        inputs = spread(train.inputs, self.amounts.train)
        labels = spread(train.targets, self.amounts.train)
        features = {layer.name: self.graph.pooled(layer) for layer in self.layers}
        last = self.layers[-1].name if self.layers else ""
        if not (self.classifies and self.layers):
            last = self.graph.raw if not self.layers else last
            if np.prod(self.card.output_shape) <= WIDEST:
                features[self.graph.raw] = self.graph.output_features()
        whole = [layer for layer in self.layers if layer.positions > 1]
        moments = [SecondMoments(layer.features) for layer in whole]
        pooled: list[list[Array]] = [[] for _ in features]
        outputs = [*(layer.name for layer in whole), *features.values()]
        for found in self.run(outputs, inputs) if outputs else []:
            for layer, sums, values in zip(whole, moments, found, strict=False):
                sums.add(np.moveaxis(values, layer.axis, -1).reshape(-1, layer.features))
            for held, values in zip(pooled, found[len(whole) :], strict=True):
                held.append(values)
        self._layers(whole, moments)
        for at, (name, held) in enumerate(zip(features, pooled, strict=True)):
            self._features(f"features {at}", features[name], np.concatenate(held))
        if self.classifies:
            self.signals[SOFTMAX] = self.graph.doubt()
        if last in features:
            values = np.concatenate(pooled[list(features).index(last)])
            self._last(features[last], values, labels)

    def _layers(self, whole: Sequence[LayerInput], moments: Sequence[SecondMoments]) -> None:
        for at, (layer, sums) in enumerate(zip(whole, moments, strict=True)):
            whitener = sums.whitening()
            if whitener is not None:
                mean, most = self.graph.log_distances_at_positions(layer, whitener)
                self._layer(f"mean at positions {at}", mean)
                self._layer(f"maximum at positions {at}", most)

    def _layer(self, name: str, tensor: str) -> None:
        self.signals[name] = tensor
        self.of_layers.append(name)

    def _features(self, name: str, tensor: str, values: Array) -> None:
        whitener = whitening(values)
        if whitener is not None:
            self._layer(name, self.graph.log_distance(tensor, whitener))

    def _last(self, tensor: str, values: Array, labels: Array) -> None:
        """Add the distances of the last layer that are scores by themselves."""
        length = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1, keepdims=True) + 1e-12)
        unit = values / length
        kinds = {"mahalanobis": (tensor, values), "mahalanobis++": ("", unit)}
        for name, (given, of) in kinds.items():
            whitener = whitening(of)
            if whitener is None:
                continue
            features = given or self.graph.normalised(tensor)
            if not self.classifies:
                self.signals[name] = self.graph.log_distance(features, whitener)
                continue
            found = class_whitening(of, labels)
            if found is None:
                continue
            self.signals[name] = distance = self.graph.class_distance(features, *found)
            if given:
                relative = self.graph.relative(distance, features, whitener)
                self.signals["relative mahalanobis"] = relative

    def measure(self, inputs: Array) -> dict[str, Array]:
        """Return the signals of examples, [n] each."""
        outputs = [self.graph.stacked(list(self.signals.values()))]
        rows = np.concatenate([found[0] for found in self.run(outputs, inputs)])
        return {name: rows[:, at] for at, name in enumerate(self.signals)}

    def drop_unsound(self, measured: Sequence[dict[str, Array]]) -> None:
        """Forget signals that are not finite."""
        for name in list(self.signals):
            if not all(np.isfinite(signals[name]).all() for signals in measured):
                del self.signals[name]
        self.of_layers = [name for name in self.of_layers if name in self.signals]


def spread(values: Array, most: int) -> Array:
    """Return at most so many of some examples, evenly spread."""
    if len(values) <= most:
        return values
    found: Array = values[np.linspace(0, len(values) - 1, most).astype(int)]
    return found


def spread_over(parts: Sequence[Array], most: int) -> Array:
    """Return at most so many of all examples of several arrays, as of one array, evenly spread."""
    starts = np.cumsum([0, *map(len, parts)])
    rows = spread(np.arange(starts[-1]), most)
    of_parts = np.split(rows, np.searchsorted(rows, starts[1:-1]))
    pieces = zip(parts, of_parts, starts[:-1], strict=True)
    found: Array = np.concatenate([part[own - start] for part, own, start in pieces])
    return found


def fit(content: bytes, train: Split, held_out: Sequence[Array]) -> bytes:
    """Return the drift graph of a model as the bytes of one ONNX file; equal in, equal out.

    Args:
        content: The released model's file.
        train: The training split.
        held_out: Inputs that the network has not seen, [n, *input_shape] each.

    Raises:
        UserError: If no score can be fitted, with the reason.
        ValueError: If the file is not a released model.
    """
    model = parse(content)
    card, sha256 = checked_card(model), hashlib.sha256(content).hexdigest()
    if not len(train.inputs):
        raise UserError("there are no training examples")
    if sum(map(len, held_out)) < LEAST_HELD_OUT:
        held_out = (train.inputs,)
    with one_thread():
        layers = _probed(model, card)
        try:
            return _fitted(_Fit(model, card, layers), sha256, train, held_out)
        except UserError:
            if not layers:
                raise
            return _fitted(_Fit(model, card, ()), sha256, train, held_out)


def _fitted(fit: _Fit, sha256: str, train: Split, held_out: Sequence[Array]) -> bytes:
    fit.learn(train)
    if not fit.signals:
        raise UserError("nothing varies at any layer")
    some = spread_over(held_out, 2 * fit.amounts.held_out)
    calibration, reference = some[::2], some[1::2]
    few = spread(reference, fit.amounts.shifted)
    shifts = dict(shifted(few, fit.card.form))
    measured = [fit.measure(part) for part in (calibration, reference, *shifts.values())]
    fit.drop_unsound(measured[:2])
    scores = candidates({k: measured[0][k] for k in fit.signals}, fit.of_layers)
    if not scores:
        raise UserError("no layer's distance is finite")
    table = {
        name: {
            shift: auroc(score.scores(measured[1]), np.nan_to_num(score.scores(signals)))
            for shift, signals in zip(shifts, measured[2:], strict=True)
        }
        for name, score in scores.items()
    }
    name = chosen(table)
    return _finished(fit, sha256, name, scores[name], table, reference, measured[1])


def _finished(
    fit: _Fit,
    sha256: str,
    name: str,
    score: Candidate,
    table: dict[str, dict[str, float]],
    reference: Array,
    measured: dict[str, Array],
) -> bytes:
    reference, found = reference[:MOST_EXAMPLES], score.scores(measured)[:MOST_EXAMPLES]
    answers, labels = _answers(fit, reference)
    card = DriftCard(
        method=name,
        form=fit.card.form,
        data_hash=fit.card.data_hash,
        model_sha256=sha256,
        auroc={shift: short(value) for shift, value in table[name].items()},
        candidates={
            other: short(float(np.mean(list(row.values())))) for other, row in table.items() if row
        },
        reference_scores=tuple(short(value) for value in found.tolist()),
        reference_answers=answers,
        reference_labels=labels,
        threshold=short(float(np.quantile(found, 1 - FALSE_ALARMS))),
    )
    return fit.graph.finished(score.add_to(fit.graph, fit.signals), card.metadata())


def _answers(fit: _Fit, inputs: Array) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    """Return the first numbers of the model's answers, and their labels; none of images."""
    runner = GraphRunner(fit.graph.model.SerializeToString(), fit.card.form)
    found = np.concatenate([part[1] for part in runner.batches(inputs, fit.amounts.batch)])
    if found.ndim > 2:
        return (), ()
    rows = found.reshape(len(found), -1)
    kept = tuple(tuple(short(v) for v in row) for row in rows[:, :MOST_ANSWERS].tolist())
    labels = rows.argmax(axis=1).tolist() if fit.classifies else []
    return kept, tuple(labels)


def short(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{value:.6g}")


def _probed(model: ModelProto, card: OnnxMetadata) -> list[LayerInput]:
    """Return the layers that can be looked at, by their shapes at two batches."""
    named = layer_inputs(model)
    if not named:
        return []
    graph = DriftGraph(model)
    runner = GraphRunner(graph.with_outputs([name for name, _ in named]), card.form)
    blank = np.zeros((3, *card.form.input_shape), card.form.dtype)
    (two,), (three,) = runner.batches(blank[:2], 2), runner.batches(blank, 3)
    found = []
    for (name, axis), small, large in zip(named, two, three, strict=True):
        batched = small.ndim >= 2 and len(small) == 2 and len(large) == 3
        if not (batched and small.shape[1:] == large.shape[1:] and small.dtype == np.float32):
            continue
        layer = LayerInput(name, small.shape[1:], axis if axis > 0 else small.ndim - 1)
        width = layer.features if layer.positions == 1 else 2 * layer.features
        if 0 < width <= WIDEST:
            found.append(layer)
    return list(spread(np.array(found, object), MOST_LAYERS)) if len(found) > 1 else found
