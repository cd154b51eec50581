"""The images of a source, in one size, before the split."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError
from pipelines.core.progress import bar
from pipelines.data.images import content_hash, fit, load, pixels
from pipelines.data.large_arrays import reserve

CHUNK = 16
"""Images per unit of work."""
_WORTH = 64 * 2**10
"""Smallest encoded image, in bytes, for which threads are faster than the interpreter's lock."""
NAMED = 20
"""Most images that one message names."""
Encoded = bytes | UserError
"""The bytes of an image file, or why they could not be read."""


@dataclass(frozen=True)
class Collection:
    """All images of a source.

    Attributes:
        classes: Class names; the position is the label.
        images: uint8 or uint16 [n, channels, size, size].
        labels: Positions in `classes`, [n]; without classes, 0.
        hashes: Hex sha256 of each image's content at its own size.
        official: Whether each image is in the source's official test set; None if there is none.
        names: Name of each image for messages.
        ignored: Names of files that are not used.
        files: The source's files → their sha256.
        validation: Whether each image is in the source's official validation set; None if there
            is none.
        notes: What a user should know of how the source was read.
        values: Numbers that are to be predicted, finite, float64 [n, values]; None where there are
            labels, or nothing.
        value_names: Their names.
    """

    classes: tuple[str, ...]
    images: NDArray[Any]
    labels: NDArray[np.int64]
    hashes: tuple[str, ...]
    official: NDArray[np.bool_] | None
    names: Sequence[str]
    ignored: tuple[str, ...]
    files: Mapping[str, str]
    validation: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()
    values: NDArray[np.float64] | None = None
    value_names: tuple[str, ...] = ()


def from_arrays(arrays: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Fit images that are already arrays.

    Args:
        arrays: [n, height, width, channels].
        size: Edge of the result, pixels.

    Returns:
        The images, [n, channels, size, size], and their content hashes.
    """
    n, _, _, channels = arrays.shape
    images, hashes = reserve(n, channels, size), []
    with bar("Reading images", n, least=2000) as advance:
        for row, image in enumerate(arrays):
            images[row] = fit(image, size)
            hashes.append(content_hash(image).hex())
            if row % 512 == 511:
                advance(512)
    return images, tuple(hashes)


def from_files(
    files: Iterable[tuple[str, Encoded]], n: int, size: int, channels: int, bits: int = 8
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Decode and fit encoded images, several at a time.

    Args:
        files: Name and bytes of each, or why it cannot be read; only a few chunks are read in
            advance.
        n: Number of images.
        size: Edge of the result, pixels.
        channels: As for `pipelines.data.images.pixels`.
        bits: 8 or 16, of each value.

    Returns:
        The images, [n, channels, size, size], and their content hashes.

    Raises:
        UserError: Naming all images that cannot be decoded, the first `NAMED` of them.
    """
    images, hashes = reserve(n, channels, size, bits), [""] * n
    bad: dict[int, str] = {}  # row → what is wrong with it

    def work(start: int, chunk: list[tuple[str, Encoded]]) -> int:
        for row, (name, content) in enumerate(chunk, start):
            try:
                if isinstance(content, UserError):
                    raise content
                image = pixels(content, channels=channels, bits=bits, name=name)
            except UserError as error:
                bad[row] = str(error)
                continue
            hashes[row] = content_hash(image).hex()
            images[row] = fit(image, size)
        return len(chunk)

    workers = min(8, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(workers) as pool, bar("Decoding images", n, least=2000) as advance:
        ahead: deque[Future[int]] = deque()
        done = 0
        try:
            for chunk in _chunks(iter(files)):
                start, done = done, done + len(chunk)
                weight = sum(len(one) for _, one in chunk if isinstance(one, bytes))
                if weight < _WORTH * len(chunk):
                    advance(work(start, chunk))
                    continue
                ahead.append(pool.submit(work, start, chunk))
                if len(ahead) > 2 * workers:
                    advance(ahead.popleft().result())
            while ahead:
                advance(ahead.popleft().result())
        finally:
            for future in ahead:
                future.cancel()
    if bad:
        raise UserError(_named([bad[row] for row in sorted(bad)]))
    if done != n:
        raise UserError(
            f"data.path: {n} images were listed and {done} read; the data changed meanwhile"
        )
    return images, tuple(hashes)


def encoded(path: Path) -> Encoded:
    """Return the bytes of an image file, or what is wrong with it, so that reading can go on."""
    try:
        return load(path)
    except UserError as error:
        return error


def _named(bad: Sequence[str]) -> str:
    """Return one message of all that is wrong."""
    if len(bad) == 1:
        return bad[0]
    more = [f"and {len(bad) - NAMED} more"] if len(bad) > NAMED else []
    return "\n  ".join([f"{len(bad)} images cannot be used:", *bad[:NAMED], *more])


def _chunks(files: Iterator[tuple[str, Encoded]]) -> Iterator[list[tuple[str, Encoded]]]:
    while chunk := list(islice(files, CHUNK)):
        yield chunk
