"""Images with all that they hold: 16 bits, and any number of channels or pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from pipelines.core.errors import UserError
from pipelines.data.arrays import MAX_PIXELS

_SAMPLES = 277  # the tag of a TIFF with its number of channels
_MOST_VALUES = 4 * MAX_PIXELS  # of all pages together


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; Pillow has already done so on loading a TIFF."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF raises almost anything; the pixels may still be good
        return image


def with_bits(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return values of 8 or 16 bits with as many bits as are wanted.

    Of 16 the upper eight are kept; 8 are multiplied by 257, so that 255 becomes 65,535.

    Args:
        values: uint8 or uint16, any shape.
        bits: 8 or 16.
    """
    deep = values.dtype.itemsize == 2
    if bits == 8:
        return (values >> 8).astype(np.uint8) if deep else values
    return values.astype(np.uint16) if deep else values.astype(np.uint16) * np.uint16(257)


def grey(opened: Image.Image) -> NDArray[np.uint16] | None:
    """Return the values of an image with one channel of 16 bits; None for one of 8 bits.

    Args:
        opened: As Pillow opened it; not loaded, so that what Pillow would leave out is seen.

    Returns:
        uint16 [height, width, 1].

    Raises:
        UserError: If Pillow would read several channels of 16 bits with 8 bits only.
    """
    _check_complete(opened)
    opened.load()
    found = _channel(upright(opened), opened.format)
    deep = found is not None and found.dtype == np.uint16
    return found[:, :, np.newaxis] if deep and found is not None else None


def every_channel(opened: Image.Image, channels: int, bits: int) -> NDArray[Any]:
    """Return all channels of an image, or its pages if each of them has one channel.

    Args:
        opened: As Pillow opened it.
        channels: That there must be.
        bits: 8 or 16, of each value of the result.

    Returns:
        uint8, or uint16 with 16 bits, [height, width, channels].

    Raises:
        UserError: If it has another number of channels or pages, pages of several sizes or types,
            or more in it than Pillow reads.
    """
    _check_complete(opened)
    bands = 0 if opened.mode == "P" else len(opened.getbands())
    pages = getattr(opened, "n_frames", 1)
    if pages > 1 and bands == 1:
        return _pages(opened, pages, channels, bits)
    if bands != channels:
        kind = "a palette" if opened.mode == "P" else f"{bands} channel{'s' * (bands != 1)}"
        raise UserError(
            f"{kind}, not {channels} channels (data.channels); a .npy file may have any"
        )
    opened.load()
    image = np.asarray(upright(opened))
    return with_bits(np.ascontiguousarray(image), bits)


def _pages(opened: Image.Image, pages: int, channels: int, bits: int) -> NDArray[Any]:
    if pages != channels:
        raise UserError(f"{pages} pages, not {channels} channels (data.channels)")
    if opened.width * opened.height * pages > _MOST_VALUES:
        raise UserError(f"more than {_MOST_VALUES // 10**6} million values")
    found: list[NDArray[Any]] = []
    size = opened.size
    for page in ImageSequence.Iterator(opened):
        if page.size != size:
            raise UserError("its pages differ in size, so they are not channels")
        _check_complete(page)
        page.load()
        values = _channel(upright(page), opened.format)
        if values is None:
            raise UserError(f"a page of mode {page.mode}; needed: grey, 8 or 16 bits")
        found.append(values)
    if len({values.dtype for values in found}) > 1:
        raise UserError("pages of 8 and of 16 bits, so they are not channels")
    return with_bits(np.stack(found, axis=2), bits)


def _channel(image: Image.Image, kind: str | None) -> NDArray[Any] | None:
    """Return the values of an image with one channel, uint8 or uint16 [height, width]."""
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I" and kind == "PPM":  # Pillow has stretched it to 16 bits
        return np.asarray(image).clip(0, 65535).astype(np.uint16)
    return None


def _check_complete(opened: Image.Image) -> None:
    """Refuse what Pillow would read in part: several channels of 16 bits, or channels left out."""
    raw = [part for tile in getattr(opened, "tile", ()) for part in _parts(tile[3])]
    if any(";16" in part for part in raw) and not opened.mode.startswith("I"):
        raise UserError(
            "several channels of 16 bits, of which only 8 can be read; save it as .npy (uint16, "
            "[height, width, channels]), or set data.bits = 8"
        )
    samples = getattr(opened, "tag_v2", {}).get(_SAMPLES, 1)
    if opened.format == "TIFF" and samples > len(opened.getbands()):
        raise UserError(
            f"{samples} channels, of which only {len(opened.getbands())} can be read; save it as "
            ".npy ([height, width, channels])"
        )


def _parts(arguments: Any) -> list[str]:
    values = arguments if isinstance(arguments, tuple) else (arguments,)
    return [value for value in values if isinstance(value, str)]
