"""Arrays of images that may be larger than memory.

A large one is mapped from a file without a name, which is gone when the process is. The kernel
writes its pages to that file and forgets them when memory is short, so that the disk is the limit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError

_SHARE = 8
"""Arrays up to this part of the machine's memory are held in it; a source and its splits, which are
as large again, are there at once."""
_PART = 1024
"""Rows that are copied at once."""


def reserve(n: int, channels: int, size: int, bits: int = 8) -> NDArray[Any]:
    """Return room for `n` images [n, channels, size, size], in memory or, if that is much, on disk.

    Large arrays lie in the folder that TMPDIR names, or in /var/tmp; /tmp is often memory itself.

    Raises:
        UserError: If the disk has not enough room.
    """
    shape, dtype = (n, channels, size, size), np.dtype(np.uint8 if bits == 8 else np.uint16)
    need = n * channels * size * size * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need * _SHARE <= memory:
        return np.empty(shape, dtype)
    folder = _folder()
    free = shutil.disk_usage(folder).free
    reason = f"{folder} has {free / 2**30:.1f} GiB" if need > free else ""
    if not reason:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # Its room is taken now: a write to a full disk would end the process.
                os.posix_fallocate(file.fileno(), 0, need)
                return np.asarray(np.memmap(file, dtype, mode="r+", shape=shape))
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
    raise UserError(
        f"data.size = {size}: {n} images of that size need {need / 2**30:.1f} GiB, too much for "
        f"memory ({memory / 2**30:.1f} GiB), and {reason}; use a smaller size or fewer images, or "
        "name a larger disk by the environment variable TMPDIR"
    )


def _folder() -> str:
    """Return where large arrays are kept."""
    places = [os.environ.get("TMPDIR", ""), "/var/tmp"]
    usable = (place for place in places if place and os.access(place, os.W_OK | os.X_OK))
    return next(usable, tempfile.gettempdir())


def gathered(images: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return some images in the order of their rows, copied.

    Args:
        images: uint8 or uint16 [n, channels, size, size].
        rows: Positions in `images`.

    Raises:
        UserError: If the disk has not enough room.
    """
    found = _like(images, len(rows))
    for start in range(0, len(rows), _PART):
        found[start : start + _PART] = images[rows[start : start + _PART]]
    return found


def joined(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the images of two arrays, one after the other, copied.

    Raises:
        UserError: If the disk has not enough room.
    """
    found = _like(first, len(first) + len(second))
    found[: len(first)], found[len(first) :] = first, second
    return found


def _like(images: NDArray[Any], n: int) -> NDArray[Any]:
    return reserve(n, images.shape[1], images.shape[2], 8 * images.dtype.itemsize)


class GrowingImages:
    """Images whose number is not known before the last."""

    def __init__(self, channels: int, size: int, bits: int) -> None:
        """Take what every image has.

        Args:
            channels: Of each.
            size: Edge of each, pixels.
            bits: 8 or 16, of each value.
        """
        self._room = reserve(512, channels, size, bits)
        self._count = 0

    def append(self, image: NDArray[Any]) -> None:
        """Take one more, [channels, size, size].

        Raises:
            UserError: If the disk has not enough room.
        """
        if self._count == len(self._room):
            larger = _like(self._room, 2 * self._count)
            larger[: self._count] = self._room
            self._room = larger
        self._room[self._count] = image
        self._count += 1

    def all(self) -> NDArray[Any]:
        """Return them, [n, channels, size, size]; not copied."""
        return self._room[: self._count]
