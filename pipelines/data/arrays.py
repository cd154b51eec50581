"""Images as arrays: in a `.npy` file, or from a function of the user's own."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import MOST_CHANNELS
from pipelines.core.errors import UserError

MAGIC = b"\x93NUMPY"
"""How a `.npy` file begins."""
MAX_PIXELS = 64_000_000
"""Most pixels of an image: more than any camera's, and too few to exhaust memory."""


def as_image(array: NDArray[Any], channels: int, bits: int) -> NDArray[Any]:
    """Return an array as an image, after a check.

    Args:
        array: uint8 or uint16 [height, width] or [height, width, channels], any byte order.
        channels: That it must have; 0: any.
        bits: That its values must have, 8 or 16.

    Returns:
        [height, width, channels], in the machine's byte order.

    Raises:
        UserError: If it has another type or shape; the message does not name the image.
    """
    check(array.shape, array.dtype, channels, bits)
    image = array[:, :, np.newaxis] if array.ndim == 2 else array
    return np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="), copy=False))


def check(shape: tuple[int, ...], dtype: np.dtype[Any], channels: int, bits: int) -> None:
    """Check type and shape of an image; arguments and errors as for `as_image`."""
    given = f"{dtype.name} {list(shape)}"
    if dtype.kind != "u" or dtype.itemsize not in (1, 2):
        raise UserError(f"an array {given}; needed: uint8 or uint16")
    if len(shape) not in (2, 3) or 0 in shape:
        raise UserError(f"an array {given}; needed: [height, width] or [height, width, channels]")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(f"more than {MAX_PIXELS // 10**6} million pixels")
    found = shape[2] if len(shape) == 3 else 1
    if shape[0] <= 4 < found and channels != found:
        raise UserError(
            f"an array {given}, which seems to have its channels first; needed: [height, width, "
            f"channels] (if it has {found} channels, say so: data.channels = {found})"
        )
    if found > MOST_CHANNELS:
        raise UserError(f"an array {given}; allowed: up to {MOST_CHANNELS} channels")
    if channels not in (0, found):
        raise UserError(f"an array {given}, not of {channels} channels (data.channels)")
    if 8 * dtype.itemsize != bits:
        raise UserError(f"an array {given}, but data.bits = {bits}; set it to {8 * dtype.itemsize}")


def read_file(content: bytes, channels: int, bits: int) -> NDArray[Any]:
    """Return the image in a `.npy` file; nothing in it is run, and no memory beyond it is taken.

    Args:
        content: The file.
        channels: As for `as_image`.
        bits: As for `as_image`.

    Returns:
        [height, width, channels].

    Raises:
        UserError: If it is no such file, is truncated, or holds something else than an image.
    """
    stream = io.BytesIO(content)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        header = headers.get(version)
        if header is None:
            raise UserError(f"a .npy file of version {version}; allowed: (1, 0) and (2, 0)")
        shape, fortran, dtype = header(stream)
    except UserError:
        raise
    except Exception as error:  # on corrupt bytes numpy raises more than its ValueError
        raise UserError(f"corrupt or truncated .npy file: {str(error)[:200]}") from None
    check(shape, dtype, channels, bits)
    start = stream.tell()
    if len(content) - start != math.prod(shape) * dtype.itemsize:
        raise UserError("corrupt or truncated .npy file: its length is not that of its array")
    values = np.frombuffer(content, dtype, offset=start)
    return as_image(values.reshape(shape, order="F" if fortran else "C"), channels, bits)
