"""What gates measure on a loaded model: disturbed inputs, extreme ones, wrong ones, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.data.prepared import Split
from pipelines.evaluation.scoring import fitted
from pipelines.gates import row_probes
from pipelines.systems.onnx.runtime import BATCHES, OnnxModel, fed
from pipelines.tasks.form import Form
from pipelines.tasks.task import Task

Inputs = NDArray[Any]
LATENCY_BATCHES = (1, 64)
ROUNDS = 15
_TURN = 0.002  # seconds at least, far above the clock's grain
_SLOW = 0.3  # seconds of a turn above which fewer rounds must do
_DISTURBED = 1000  # examples
_EVERY = range(1, 34)
"""Batches that are all tried: what one request, a few or a small batch bring."""
_LARGER = range(34, 256)
_SHIFTS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def noisy(split: Split, deviation: float, form: Form) -> dict[str, Split]:
    """Return a split's first examples under Gaussian noise, the same at every call.

    Args:
        split: Examples as the data hold them.
        deviation: Standard deviation of images in grey levels of 8 bits; see `row_probes` of rows.
        form: Of the data.
    """
    part = _first(split)
    if form.kind == "rows":
        return row_probes.noisy(part, form, deviation)
    scale = deviation * form.levels / 255
    noise = np.random.default_rng(0).normal(0.0, scale, part.inputs.shape)
    disturbed = np.clip(np.rint(part.inputs + noise), 0, form.levels).astype(form.dtype)
    return {f"under noise of {deviation:g} grey levels": replace(part, inputs=disturbed)}


def shifted(split: Split, form: Form) -> dict[str, Split]:
    """Return a split's first images, moved by one pixel each way; edges are repeated.

    Of rows one column at a time is missing instead; see `row_probes`.
    """
    part = _first(split)
    if form.kind == "rows":
        return row_probes.incomplete(part, form)
    padded = np.pad(part.inputs, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    size = form.size
    found = {}
    for name, (down, right) in _SHIFTS.items():
        moved = padded[:, :, 1 - down : 1 - down + size, 1 - right : 1 - right + size]
        found[f"a pixel {name}"] = replace(part, inputs=np.ascontiguousarray(moved))
    return found


def _first(split: Split) -> Split:
    most = slice(_DISTURBED)
    return Split(split.inputs[most], split.targets[most], split.hashes[most])


def wrong_inputs(model: OnnxModel) -> dict[str, bool]:
    """Return wrong inputs → whether the runtime refuses them."""
    form = model.form
    if form.kind == "images":
        return {name: model.refuses(value) for name, value in _wrong_images(form).items()}
    blank = fed(form, np.zeros((1, *form.input_shape)))
    found = {}
    for name, value in blank.items():
        width = np.concatenate([value, value[:, :1]], axis=1)
        for what, wrong in {
            "float32": np.zeros(value.shape, np.float32),
            "int64": np.zeros(value.shape, np.int64),
            "another number of columns": width,
            "no batch": value[0],
        }.items():
            found[f"{name}: {what}"] = model.refuses(wrong, name)
    return found


def _wrong_images(form: Form) -> dict[str, Inputs]:
    shape = (1, form.channels, form.size, form.size)
    return {
        "float32": np.zeros(shape, np.float32),
        "int64": np.zeros(shape, np.int64),
        "another size": np.zeros((1, form.channels, form.size + 1, form.size + 1), form.dtype),
        "another number of channels": np.zeros(
            (1, form.channels + 1, form.size, form.size), form.dtype
        ),
        "no batch": np.zeros(shape[1:], form.dtype),
    }


def extreme_answers(model: OnnxModel, task: Task) -> dict[str, bool]:
    """Return extreme inputs → whether raw outputs and answers are sound."""
    found = {}
    for name, value in _extremes(model.form).items():
        raw, answers = model.both(value)
        found[name] = bool(np.isfinite(raw).all()) and task.sound(answers)
    return found


def _extremes(form: Form) -> dict[str, Inputs]:
    if form.kind == "rows":
        return row_probes.extreme_rows(form)
    shape = (1, form.channels, form.size, form.size)
    board = np.indices(shape).sum(axis=0) % 2 * form.levels
    tried = {"black": np.zeros(shape), "white": np.full(shape, form.levels), "chequered": board}
    return {name: value.astype(form.dtype) for name, value in tried.items()}


def batches(sha256: str) -> tuple[int, ...]:
    """Return the batches at which a model is asked: 1 to 33, one that is larger, and 256.

    Args:
        sha256: Of the model's file, in hex. It decides the larger one: the same at every
            judgement, and not known before the file is made.
    """
    return (*_EVERY, _LARGER[int(sha256, 16) % len(_LARGER)], max(BATCHES))


@dataclass(frozen=True)
class Answers:
    """What a model answered to some inputs in one batch.

    Attributes:
        raw: Raw outputs, such as logits, [n, …].
        read: What users read, such as probabilities, [n, …].
    """

    raw: NDArray[np.float32]
    read: NDArray[Any]

    def at(self, positions: NDArray[np.int64]) -> Answers:
        """Return the answers to some of the inputs."""
        return Answers(self.raw[positions], self.read[positions])


@dataclass(frozen=True)
class Asked:
    """The answers to the same inputs, alone and in batches.

    Attributes:
        alone: The answers to each input alone.
        together: Batch → the answers to a batch of them and those to the same inputs alone; or
            what the runtime raised.
    """

    alone: Answers
    together: Mapping[int, tuple[Answers, Answers] | UserError]


def asked_at(model: OnnxModel, inputs: Inputs, batches: Sequence[int]) -> Asked:
    """Ask a model about inputs, each alone, and one batch of each size.

    Args:
        model: The model.
        inputs: As the model takes them, n ≥ 1; repeated where n is below a batch. Each batch
            begins behind the one before, so that all inputs are asked about.
        batches: Each at least 1.

    Raises:
        UserError: If inputs alone cannot be answered.
    """
    asked = inputs[np.arange(max(batches)) % len(inputs)]
    alone = Answers(*model.both(asked, batch=1))
    together: dict[int, tuple[Answers, Answers] | UserError] = {}
    start = 0
    for batch in batches:
        positions = (np.arange(batch) + start) % len(asked)
        start += batch
        try:
            found = Answers(*model.both(asked[positions], batch=batch))
            together[batch] = found, alone.at(positions)
        except UserError as error:
            together[batch] = error
    return Asked(alone, together)


def batch_differences(asked: Asked) -> dict[int, float | Exception]:
    """Return batch → largest difference of its answers from those to each input alone.

    Of raw outputs it is relative to the largest one, of answers to the largest answer, or absolute
    where none is above 1, as of probabilities.
    """
    raw_scale = _scale(asked.alone.raw, float(np.finfo(np.float32).tiny))
    scale = _scale(asked.alone.read, 1.0)
    found: dict[int, float | Exception] = {}
    for batch, pair in asked.together.items():
        if isinstance(pair, Exception):
            found[batch] = pair
            continue
        together, alone = pair
        with np.errstate(invalid="ignore"):  # of infinite ones comes NaN, which does not pass
            raw = np.abs(together.raw - alone.raw).max() / raw_scale
            read = np.abs(together.read - alone.read).max() / scale
        found[batch] = float(np.maximum(raw, read))  # NaN if either is
    return found


def _scale(values: NDArray[Any], least: float) -> float:
    return max(float(np.abs(values).max()), least)


def answer_differences(asked: Asked, task: Task) -> tuple[float, int, int, int]:
    """Return how all answers differ from those that the task makes of the raw outputs.

    Args:
        asked: All answers.
        task: Of the model.

    Returns:
        The largest difference, on the scale of `batch_differences`; the answers whose labels by
        raw outputs and by answers differ by no more than rounding; other answers whose labels
        differ, both 0 where nothing is classified; and the number of answers.
    """
    pairs = [pair for pair in asked.together.values() if not isinstance(pair, Exception)]
    every = [asked.alone, *(together for together, _ in pairs)]
    raw = np.concatenate([each.raw for each in every])
    read = np.concatenate([each.read for each in every])
    scale = _scale(asked.alone.read, 1.0)
    with np.errstate(invalid="ignore"):  # of an infinite logit comes NaN, which no gate lets pass
        difference = float(np.abs(task.answer(raw) - read).max()) / scale
    if not task.counts:
        return difference, 0, 0, len(read)
    rows = np.arange(len(read))
    label, largest = raw.argmax(axis=1), read.max(axis=1)
    differ = label != read.argmax(axis=1)
    tied = read[rows, label] >= largest * (1 - 4 * np.finfo(np.float32).eps)
    return difference, int((differ & tied).sum()), int((differ & ~tied).sum()), len(read)


def latency_ratios(new: Path, old: Path, inputs: Inputs, data: Form) -> dict[int, list[float]]:
    """Return batch → time of one model over that of another, in turns.

    Both run in one thread, this one, and its processor time counts: what else the machine does,
    and threads of either that wait for work in the other's turn, would decide a wall-clock ratio.

    Args:
        new: The model's file.
        old: The one it is held against.
        inputs: As the data hold them, n ≥ 1; repeated where n is below a batch.
        data: Form of the data.
    """
    models = [OnnxModel.load(path, "cpu", threads=1) for path in (new, old)]
    found = {}
    for batch in LATENCY_BATCHES:
        some = inputs[np.arange(batch) % len(inputs)]
        asked = [fitted(some, data, model.form) for model in models]
        # This warms both up, too.
        once = max(_seconds(models[at], asked[at], 1) for at in (0, 1))
        repeats = max(1, round(_TURN / max(once, 1e-6)))
        ratios = []
        for _ in range(ROUNDS if once < _SLOW else ROUNDS // 4):
            # There and back: what favours the first of two turns favours each once.
            times = [_seconds(models[at], asked[at], repeats) for at in (0, 1, 1, 0)]
            ratios.append((times[0] + times[3]) / (times[1] + times[2]))
        found[batch] = ratios
    return found


def _seconds(model: OnnxModel, inputs: Inputs, repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        model.raw(inputs)
    return max(time.thread_time() - start, 1e-9)
