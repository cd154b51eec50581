"""What gates measure on a loaded model: disturbed images, extreme ones, wrong inputs, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.data.prepared import Split
from pipelines.systems.onnx.runtime import BATCHES, OnnxModel

Images = NDArray[np.uint8]
LATENCY_BATCHES = (1, 64)
ROUNDS = 15
_TURN = 0.002  # seconds at least, far above the clock's grain
_SLOW = 0.3  # seconds of a turn above which fewer rounds must do
_DISTURBED = 1000  # images
_EVERY = range(1, 34)
"""Batches that are all tried: what one request, a few or a small batch bring."""
_LARGER = range(34, 256)
_SHIFTS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def noisy(split: Split, deviation: float) -> dict[str, Split]:
    """Return a split's first images under Gaussian noise, the same at every call.

    Args:
        split: Of raw images [n, channels, size, size].
        deviation: Standard deviation in grey levels.
    """
    images = split.images[:_DISTURBED]
    noise = np.random.default_rng(0).normal(0.0, deviation, images.shape)
    disturbed = np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
    return {f"under noise of {deviation:g} grey levels": _with(split, disturbed)}


def shifted(split: Split) -> dict[str, Split]:
    """Return a split's first images, moved by one pixel each way; edges are repeated."""
    images = split.images[:_DISTURBED]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    size = images.shape[-1]
    return {
        f"a pixel {name}": _with(
            split, padded[:, :, 1 - down : 1 - down + size, 1 - right : 1 - right + size]
        )
        for name, (down, right) in _SHIFTS.items()
    }


def _with(split: Split, images: Images) -> Split:
    count = len(images)
    return Split(np.ascontiguousarray(images), split.labels[:count], split.hashes[:count])


def wrong_inputs(model: OnnxModel) -> dict[str, bool]:
    """Return wrong inputs → whether the runtime refuses them."""
    channels, size = model.card.channels, model.card.size
    shape = (1, channels, size, size)
    tried: dict[str, NDArray[np.generic]] = {
        "float32": np.zeros(shape, np.float32),
        "int64": np.zeros(shape, np.int64),
        "another size": np.zeros((1, channels, size + 1, size + 1), np.uint8),
        "another number of channels": np.zeros((1, channels + 1, size, size), np.uint8),
        "no batch": np.zeros(shape[1:], np.uint8),
    }
    return {name: model.refuses(value) for name, value in tried.items()}


def extreme_answers(model: OnnxModel) -> dict[str, bool]:
    """Return extreme images → whether logits and probabilities are sound."""
    shape = (1, model.card.channels, model.card.size, model.card.size)
    board = np.indices(shape).sum(axis=0) % 2 * 255
    tried = {"black": np.zeros(shape), "white": np.full(shape, 255), "chequered": board}
    found = {}
    for name, value in tried.items():
        image = value.astype(np.uint8)
        shares = model.probabilities(image)
        sound = np.isfinite(model.logits(image)).all() and np.isfinite(shares).all()
        found[name] = bool(sound and (shares >= 0).all() and abs(shares.sum() - 1) < 1e-3)
    return found


def batches(sha256: str) -> tuple[int, ...]:
    """Return the batches at which a model is asked: 1 to 33, one that is larger, and 256.

    Args:
        sha256: Of the model's file, in hex. It decides the larger one: the same at every
            judgement, and not known before the file is made.
    """
    return (*_EVERY, _LARGER[int(sha256, 16) % len(_LARGER)], max(BATCHES))


@dataclass(frozen=True)
class Answers:
    """What a model answered to some images in one batch.

    Attributes:
        logits: [n, classes].
        probabilities: [n, classes].
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def at(self, positions: NDArray[np.int64]) -> Answers:
        """Return the answers to some of the images."""
        return Answers(self.logits[positions], self.probabilities[positions])


@dataclass(frozen=True)
class Asked:
    """The answers to the same images, alone and in batches.

    Attributes:
        alone: The answers to each image alone.
        together: Batch → the answers to a batch of them and those to the same images alone; or
            what the runtime raised.
    """

    alone: Answers
    together: Mapping[int, tuple[Answers, Answers] | UserError]


def asked_at(model: OnnxModel, images: Images, batches: Sequence[int]) -> Asked:
    """Ask a model about images, each alone, and one batch of each size.

    Args:
        model: The model.
        images: uint8 [n, channels, size, size], n ≥ 1; repeated where n is below a batch. Each
            batch begins behind the one before, so that all images are asked about.
        batches: Each at least 1.

    Raises:
        UserError: If images alone cannot be answered.
    """
    asked = images[np.arange(max(batches)) % len(images)]
    alone = Answers(*model.answers(asked, batch=1))
    together: dict[int, tuple[Answers, Answers] | UserError] = {}
    start = 0
    for batch in batches:
        positions = (np.arange(batch) + start) % len(asked)
        start += batch
        try:
            found = Answers(*model.answers(asked[positions], batch=batch))
            together[batch] = found, alone.at(positions)
        except UserError as error:
            together[batch] = error
    return Asked(alone, together)


def batch_differences(asked: Asked) -> dict[int, float | Exception]:
    """Return batch → largest difference of its answers from those to each image alone.

    Of logits it is relative to the largest logit, of probabilities absolute.
    """
    scale = max(float(np.abs(asked.alone.logits).max()), float(np.finfo(np.float32).tiny))
    found: dict[int, float | Exception] = {}
    for batch, pair in asked.together.items():
        if isinstance(pair, Exception):
            found[batch] = pair
            continue
        together, alone = pair
        with np.errstate(invalid="ignore"):  # of infinite ones comes NaN, which does not pass
            logits = np.abs(together.logits - alone.logits).max() / scale
            shares = np.abs(together.probabilities - alone.probabilities).max()
        found[batch] = float(np.maximum(logits, shares))  # NaN if either is
    return found


def softmax_differences(asked: Asked) -> tuple[float, int, int, int]:
    """Return how the probabilities of all answers differ from the softmax of their logits.

    Returns:
        The largest difference; the answers whose labels by logits and by probabilities differ by no
        more than rounding; other answers whose labels differ; and the number of answers.
    """
    pairs = [pair for pair in asked.together.values() if not isinstance(pair, Exception)]
    every = [asked.alone, *(together for together, _ in pairs)]
    logits = np.concatenate([each.logits for each in every]).astype(np.float64)
    shares = np.concatenate([each.probabilities for each in every])
    with np.errstate(invalid="ignore"):  # of an infinite logit comes NaN, which no gate lets pass
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        difference = float(np.abs(powers / powers.sum(axis=1, keepdims=True) - shares).max())
    rows = np.arange(len(shares))
    label, largest = logits.argmax(axis=1), shares.max(axis=1)
    differ = label != shares.argmax(axis=1)
    tied = shares[rows, label] >= largest * (1 - 4 * np.finfo(np.float32).eps)
    return difference, int((differ & tied).sum()), int((differ & ~tied).sum()), len(shares)


def latency_ratios(new: Path, old: Path, images: Images) -> dict[int, list[float]]:
    """Return batch → time of one model over that of another, in turns.

    Both run in one thread, this one, and its processor time counts: what else the machine does,
    and threads of either that wait for work in the other's turn, would decide a wall-clock ratio.

    Args:
        new: The model's file.
        old: The one it is held against.
        images: uint8 [n, channels, size, size], n ≥ 1; repeated where n is below a batch.
    """
    models = [OnnxModel.load(path, "cpu", threads=1) for path in (new, old)]
    found = {}
    for batch in LATENCY_BATCHES:
        asked = images[np.arange(batch) % len(images)]
        once = max(_seconds(model, asked, 1) for model in models)  # warms both up, too
        repeats = max(1, round(_TURN / max(once, 1e-6)))
        ratios = []
        for _ in range(ROUNDS if once < _SLOW else ROUNDS // 4):
            # There and back: what favours the first of two turns favours each once.
            times = [_seconds(models[at], asked, repeats) for at in (0, 1, 1, 0)]
            ratios.append((times[0] + times[3]) / (times[1] + times[2]))
        found[batch] = ratios
    return found


def _seconds(model: OnnxModel, images: Images, repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        model.logits(images)
    return max(time.thread_time() - start, 1e-9)
