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
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.core.errors import UserError

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
    }
)
MAX_PIXELS = 64_000_000
"""Most pixels of an image: more than any camera's, and too few to exhaust memory."""
MAX_BYTES = 256 * 2**20
"""Most bytes of an encoded image."""


def decode(
    image: bytes | Path, *, size: int, channels: int, name: str | None = None
) -> NDArray[np.uint8]:
    """Return an encoded image as the network's input.

    Args:
        image: The bytes of a file of one of `FORMATS`, or its path.
        size: Edge of the square result, pixels.
        channels: 1 (grey) or 3 (RGB).
        name: What to call the image in an error; default: its path.

    Returns:
        Values 0 to 255, [channels, size, size].

    Raises:
        UserError: Naming the image, if it is not one, is truncated, or is too large.
    """
    return fit(pixels(image, channels=channels, name=name), size)


def pixels(image: bytes | Path, *, channels: int, name: str | None = None) -> NDArray[np.uint8]:
    """Return an image at its own size, upright, in grey or RGB.

    The EXIF orientation is applied. An animation gives its first frame. Transparent pixels become
    white. Of 16-bit values, the upper eight bits are kept.

    Args:
        image: The bytes of a file of one of `FORMATS`, or its path.
        channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
        name: What to call the image in an error; default: its path.

    Returns:
        Values 0 to 255, [height, width, channels].

    Raises:
        UserError: Naming the image, if it is not one, is truncated, or is too large.
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
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UserError(too_many)
            opened.load()
            plain = _plain(_upright(opened), "L" if channels == 1 else "RGB")
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
    array = np.asarray(plain, dtype=np.uint8)
    return np.ascontiguousarray(array.reshape(plain.height, plain.width, channels))


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


def fit(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return the central square of an image, resized.

    This equals resizing the shorter side to `size` and cropping the centre. It is one step, so that
    a strip of 1 × 60,000 pixels needs little memory.

    Args:
        image: [height, width, channels], with one or three channels.
        size: Edge of the result, pixels.

    Returns:
        [channels, size, size]; an image that is already `size` × `size` is not changed.
    """
    height, width, channels = image.shape
    if (height, width) != (size, size):
        edge = min(height, width)
        left, top = (width - edge) // 2, (height - edge) // 2
        source = Image.fromarray(image[:, :, 0] if channels == 1 else image)
        # Pillow's filters widen with the reduction; this avoids aliasing.
        resized = source.resize(
            (size, size), Image.Resampling.BICUBIC, box=(left, top, left + edge, top + edge)
        )
        image = np.asarray(resized, dtype=np.uint8).reshape(size, size, channels)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def content_hash(image: NDArray[np.uint8]) -> bytes:
    """Return the sha256 (32 bytes) of an image's shape and pixels, [height, width, channels].

    It is computed at the image's own size, so that it, and the split that it decides, do not depend
    on `data.size`.
    """
    shape = ",".join(str(n) for n in image.shape)
    return hashlib.sha256(f"{shape}:".encode() + np.ascontiguousarray(image).tobytes()).digest()


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; Pillow has already done so on loading a TIFF."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF raises almost anything; the pixels may still be good
        return image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Return `image` in mode L or RGB."""
    if image.mode.startswith("I;16"):
        values: NDArray[Any] = np.asarray(image)
        return Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise UserError(f"32-bit pixels (mode {image.mode}); allowed: 8 or 16 bits per channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)
