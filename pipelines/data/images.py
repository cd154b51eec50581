"""From an image file to the network's input: the only place that decodes and resizes.

Preparation, prediction and serving all call `decode`, so a network always gets pixels that
were made in the same way. `decode` is `fit` after `pixels`; sources that hold arrays instead of
files only call `fit`.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipelines.core.errors import UserError
from pipelines.data import arrays, deep_images, deep_png
from pipelines.data.arrays import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".npy",
    }
)
_ORIENTATION = 0x0112  # of EXIF
MAX_BYTES = 256 * 2**20
"""Most bytes of an encoded image."""


def decode(
    image: bytes | Path, *, size: int, channels: int, bits: int = 8, name: str | None = None
) -> NDArray[Any]:
    """Return an encoded image as the network's input.

    Args:
        image: The bytes of a file of one of `FORMATS` or of a `.npy` file, or its path.
        size: Edge of the square result, pixels.
        channels: As for `pixels`.
        bits: As for `pixels`.
        name: What to call the image in an error; default: its path.

    Returns:
        uint8, or uint16 with 16 bits, [channels, size, size].

    Raises:
        UserError: Naming the image, if it is not one, is truncated, is too large, or has another
            number of channels.
    """
    return fit(pixels(image, channels=channels, bits=bits, name=name), size)


def pixels(
    image: bytes | Path, *, channels: int, bits: int = 8, name: str | None = None
) -> NDArray[Any]:
    """Return an image at its own size, upright.

    The EXIF orientation is applied. With 1 or 3 channels, an animation gives its first frame, and
    transparent pixels become white. With 8 bits, the upper eight of 16 are kept; with 16 bits,
    values of 8 bits are multiplied by 257, so that white stays white. An array in a `.npy` file
    is taken as it is.

    Args:
        image: The bytes of a file of one of `FORMATS` or of a `.npy` file, or its path.
        channels: 1 (grey, ITU-R 601 luma), 3 (RGB), or another number, which the image must have.
        bits: 8 or 16, of each value of the result.
        name: What to call the image in an error; default: its path.

    Returns:
        uint8, or uint16 with 16 bits, [height, width, channels].

    Raises:
        UserError: Naming the image, if it is not one, is truncated, is too large, or has another
            number of channels.
    """
    if isinstance(image, Path):
        name = name or str(image)
        image = load(image, name)
    name = name or "image"
    if not image:
        raise UserError(f"{name}: an empty file")
    if len(image) > MAX_BYTES:
        raise UserError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    too_many = f"{name}: more than {MAX_PIXELS // 10**6} million pixels"
    try:
        if image.startswith(arrays.MAGIC):
            return arrays.read_file(image, channels, bits)
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UserError(too_many)
            if bits == 16 and deep_png.is_one(image):
                opened.load()  # finds what is damaged
                return deep_png.read(image, channels, opened.getexif().get(_ORIENTATION, 1))
            return values(opened, channels, bits)
    except UserError as error:
        raise UserError(str(error) if name in str(error) else f"{name}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(too_many) from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a readable image; formats: {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:  # on corrupt bytes Pillow's decoders raise almost anything
        raise UserError(f"{name}: corrupt or truncated image: {error}") from None


def values(opened: Image.Image, channels: int, bits: int) -> NDArray[Any]:
    """Return the values of an image of Pillow; arguments and result as those of `pixels`.

    Raises:
        UserError: If it cannot have so many channels or bits; the message does not name it.
        Exception: Almost any, if the image is corrupt.
    """
    if channels not in (1, 3):
        return deep_images.every_channel(opened, channels, bits)
    deep = None
    if bits == 16 or (opened.mode, opened.format) == ("I", "PPM"):  # a PGM of 16 bits
        deep = deep_images.grey(opened)
    if deep is not None:
        return np.repeat(deep_images.with_bits(deep, bits), channels, axis=2)
    opened.load()
    plain = _plain(deep_images.upright(opened), "L" if channels == 1 else "RGB")
    array = np.asarray(plain, dtype=np.uint8).reshape(plain.height, plain.width, channels)
    return deep_images.with_bits(np.ascontiguousarray(array), bits)


def load(path: Path, name: str | None = None) -> bytes:
    """Return the bytes of an image file.

    Args:
        path: The file.
        name: What to call it in an error; default: its path.

    Raises:
        UserError: If it cannot be read or has more than `MAX_BYTES`.
    """
    name = name or str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None


def fit(image: NDArray[Any], size: int) -> NDArray[Any]:
    """Return the central square of an image, resized.

    This equals resizing the shorter side to `size` and cropping the centre. It is one step, so that
    a strip of 1 × 60,000 pixels needs little memory.

    Args:
        image: uint8 or uint16 [height, width, channels].
        size: Edge of the result, pixels.

    Returns:
        [channels, size, size]; an image that is already `size` × `size` is not changed.
    """
    height, width, channels = image.shape
    if (height, width) != (size, size):
        edge = min(height, width)
        left, top = (width - edge) // 2, (height - edge) // 2
        box = (left, top, left + edge, top + edge)
        if image.dtype == np.uint8 and channels == 3:
            image = _resized(image, size, box)
        else:
            every = [_resized(image[:, :, at], size, box) for at in range(channels)]
            image = np.stack(every, axis=2)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _resized(image: NDArray[Any], size: int, box: tuple[int, int, int, int]) -> NDArray[Any]:
    """Return a part of an image of 8 bits, or of one channel [height, width] of 16, resized."""
    deep = image.dtype == np.uint16
    source = Image.fromarray(image.astype(np.float32) if deep else image)
    # Pillow's filters widen with the reduction; this avoids aliasing.
    resized = source.resize((size, size), Image.Resampling.BICUBIC, box=box)
    values: NDArray[Any] = np.asarray(resized)
    return np.rint(values).clip(0, 65535).astype(np.uint16) if deep else values


def content_hash(image: NDArray[Any]) -> bytes:
    """Return the sha256 (32 bytes) of an image's shape and pixels, [height, width, channels].

    It is computed at the image's own size, so that it, and the split that it decides, do not depend
    on `data.size`.
    """
    shape = ",".join(str(n) for n in image.shape)
    if image.dtype.itemsize == 2:
        shape, image = f"{shape},16 bits", image.astype("<u2", copy=False)
    return hashlib.sha256(f"{shape}:".encode() + np.ascontiguousarray(image).tobytes()).digest()


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Return `image` in mode L or RGB."""
    if image.mode.startswith("I;16"):
        upper = deep_images.with_bits(np.asarray(image), 8)
        return Image.fromarray(upper).convert(mode)
    if image.mode in ("I", "F"):
        raise UserError(f"32-bit pixels (mode {image.mode}); allowed: 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)
