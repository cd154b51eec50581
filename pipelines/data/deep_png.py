"""PNG files with several channels of 16 bits, of which Pillow reads the upper eight only."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from pipelines.core.errors import UserError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 4: 2, 6: 4}  # by colour type: RGB, grey and alpha, RGBA
_LUMA = np.array([19595, 38470, 7471], np.int64)  # ITU-R 601 in parts of 65,536, as Pillow has it
_TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""EXIF orientation → what makes the image upright."""


def is_one(content: bytes) -> bool:
    """Say whether the bytes are a PNG with several channels of 16 bits."""
    return (
        content.startswith(_SIGNATURE)
        and content[12:16] == b"IHDR"
        and content[24:25] == b"\x10"
        and content[25] in _CHANNELS
    )


def read(content: bytes, channels: int, orientation: int = 1) -> NDArray[np.uint16]:
    """Return such an image with all bits.

    Args:
        content: The file, for which `is_one` holds and which Pillow has decoded without an error.
        channels: 1 (grey), 3 (RGB), each with transparent pixels on white; or those of the file.
        orientation: Of its EXIF data, 1 to 8.

    Returns:
        [height, width, channels].

    Raises:
        UserError: If it is interlaced, or has another number of channels.
    """
    width, height, _, kind, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    if interlaced:
        raise UserError("interlaced, with several channels of 16 bits; save it without interlacing")
    own = _CHANNELS[kind]
    line = 2 * own * width
    most = height * (1 + line)
    packed = zlib.decompressobj().decompress(b"".join(_data(content)), most)
    if len(packed) != most:
        raise UserError("corrupt or truncated image")
    rows = np.frombuffer(packed, np.uint8).reshape(height, 1 + line)
    plain = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, 2 * own))
    values = plain.view(">u2").astype(np.uint16)
    turn = _TURNS.get(orientation)
    return np.ascontiguousarray(_with_channels(turn(values) if turn else values, channels))


def _data(content: bytes) -> list[bytes]:
    """Return the contents of the chunks that hold pixels."""
    at, found = len(_SIGNATURE), []
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] == b"IDAT":
            found.append(content[at + 8 : at + 8 + length])
        at += 12 + length
    return found


def _unfiltered(kinds: NDArray[np.uint8], coded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo the filters of the rows, along diagonals, on which no pixel depends on another.

    Args:
        kinds: The filter of each row [height], 0 to 4.
        coded: Differences [height, width, bytes of a pixel].

    Returns:
        The bytes, of the same shape.
    """
    height, width, depth = coded.shape
    found = np.zeros((height + 1, width + 1, depth), np.uint8)
    columns = kinds.astype(np.int16)[:, None]
    for diagonal in range(height + width - 1):
        rows = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        at = diagonal - rows
        left, above, corner = (
            found[rows + down, at + right].astype(np.int16)
            for down, right in ((1, 0), (0, 1), (0, 0))
        )
        # Paeth: whichever of the three is nearest to left + above - corner, in this order.
        to_left, to_above = abs(above - corner), abs(left - corner)
        to_corner = abs(left + above - 2 * corner)
        paeth = np.where(to_above <= to_corner, above, corner)
        paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, paeth)
        kind = columns[rows]
        guesses = (np.zeros_like(left), left, above, (left + above) // 2, paeth)
        guess = np.select([kind == number for number in range(5)], guesses)
        found[rows + 1, at + 1] = (coded[rows, at] + guess).astype(np.uint8)
    return np.ascontiguousarray(found[1:, 1:])


def _with_channels(values: NDArray[np.uint16], channels: int) -> NDArray[np.uint16]:
    """Return grey, RGB, or all channels of an image [height, width, own channels]."""
    own = values.shape[2]
    if own == channels:
        return values
    if channels not in (1, 3):
        raise UserError(f"{own} channels, not {channels} channels (data.channels)")
    if own in (2, 4):  # onto white
        colours, alpha = values[:, :, :-1].astype(np.int64), values[:, :, -1:].astype(np.int64)
        values = ((colours * alpha + 65535 * (65535 - alpha) + 32767) // 65535).astype(np.uint16)
    if values.shape[2] > channels:
        values = ((values.astype(np.int64) @ _LUMA + 32768) >> 16).astype(np.uint16)[:, :, None]
    return np.repeat(values, channels // values.shape[2], axis=2)
