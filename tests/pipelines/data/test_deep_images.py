"""Images with all their channels and bits: arrays, 16-bit files, pages."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.data import added, sources
from pipelines.data.images import content_hash, decode, fit, pixels
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_split

Configured = Callable[..., DataConfig]


def noise(*shape: int, dtype: Any = np.uint16, seed: int = 0) -> NDArray[Any]:
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def npy(array: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def filtered(values: NDArray[np.uint16]) -> bytes:
    """Return the rows of a PNG, each with the next of the five filters, as the standard says."""
    height, width, channels = values.shape
    raw = values.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    step, rows = 2 * channels, b""
    for y in range(height):
        line = [y % 5]
        for x in range(2 * channels * width):
            a = raw[y, x - step] if x >= step else 0
            b = raw[y - 1, x] if y else 0
            c = raw[y - 1, x - step] if y and x >= step else 0
            paeth = min((a, b, c), key=lambda one: abs(a + b - c - one))
            line.append((raw[y, x] - (0, a, b, (a + b) // 2, paeth)[y % 5]) % 256)
        rows += bytes(line)
    return rows


def png_16_bits(values: NDArray[np.uint16], interlaced: int = 0, more: bytes = b"") -> bytes:
    """Write the PNG that Pillow cannot: several channels of 16 bits."""
    height, width, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    kind = {3: 2, 2: 4, 4: 6}[channels]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced))
    packed = zlib.compress(filtered(values))
    data = chunk(b"IDAT", packed[:9]) + chunk(b"IDAT", packed[9:]) + chunk(b"IEND", b"")
    parts = head + (chunk(b"eXIf", more) if more else b"") + data
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(values: NDArray[Any]) -> bytes:
    """Write an uncompressed TIFF of any channels, as instruments do."""
    height, width, samples = values.shape
    bits = 8 * values.dtype.itemsize
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    lists = struct.pack(f"<{samples}H", *([bits] * samples))
    more = struct.pack(f"<{max(samples - 3, 1)}H", *([0] * max(samples - 3, 1)))
    start = 8 + len(content) + len(content) % 2
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, start), (259, 3, 1, 1),
            (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, height),
            (279, 4, 1, len(content))]  # fmt: skip
    if samples > 4:
        tags.append((338, 3, samples - 3, start + len(lists)))
    place = start + len(lists) + len(more)
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    padded = content.ljust(start - 8, b"\0")
    return b"II*\0" + struct.pack("<I", place) + padded + lists + more + directory


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_array_is_taken_as_it_is(dtype: Any) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    image = noise(6, 6, 5, dtype=dtype)
    for written in (image, np.asfortranarray(image), image.astype(np.dtype(dtype).newbyteorder())):
        found = pixels(npy(written), channels=5, bits=bits)
        assert found.dtype == np.dtype(dtype)
        assert np.array_equal(found, image)
        assert found.dtype.isnative
    grey = pixels(npy(image[:, :, 0]), channels=1, bits=bits)
    assert np.array_equal(grey[:, :, 0], image[:, :, 0])
    made = decode(npy(image), size=6, channels=5, bits=bits)
    assert np.array_equal(made, image.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy(noise(6, 6, 5)), r"uint16 \[6, 6, 5\], not of 4 channels"),
        (npy(noise(6, 6, 4, dtype=np.uint8)), r"but data\.bits = 16; set it to 8"),
        (npy(noise(6, 6, 4).astype(np.float32)), r"float32 \[6, 6, 4\]; needed: uint8 or uint16"),
        (npy(np.array([[{}]]), allow_pickle=True), r"object \[1, 1\]; needed: uint8 or uint16"),
        (npy(noise(6, 6, 4))[:-1], r"its length is not that of its array"),
        (npy(noise(6, 6, 4))[:9], r"corrupt or truncated \.npy file"),
        (npy(noise(0, 6, 4)), r"needed: \[height, width\]"),
        (npy(noise(2, 2, 4)).replace(b"(2, 2, 4)", b"(9**9,)  "), r"corrupt or truncated \.npy"),
        (npy(noise(6, 6, 4)).replace(b"(6, 6, 4),", b"(8000,9000"), r"corrupt or truncated \.npy"),
        (npy(noise(6, 6, 4)).replace(b"(6, 6, 4), ", b"(8000,9000)"), r"more than 64 million"),
    ],
)
def test_an_array_that_is_no_such_image(content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"^a\.npy: .*{said}"):
        pixels(content, channels=4, bits=16, name="a.npy")


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}),
])  # fmt: skip
def test_files_of_16_bits_keep_them(kind: str, options: dict[str, Any]) -> None:
    grey = noise(5, 5)
    content = encoded(Image.fromarray(grey), kind, **options)
    assert np.array_equal(decode(content, size=5, channels=1, bits=16)[0], grey)
    colours = decode(content, size=5, channels=3, bits=16)
    assert all(np.array_equal(channel, grey) for channel in colours)
    assert np.array_equal(decode(content, size=5, channels=1)[0], grey >> 8)


def test_a_png_of_several_channels_of_16_bits_keeps_them() -> None:
    for channels in (2, 3, 4):
        image = noise(23, 17, channels)
        image[4:9] = image[4]  # so that the filters have something to do
        content = png_16_bits(image)
        assert np.array_equal(pixels(content, channels=channels, bits=16), image)
    colour = noise(12, 13, 3)
    content = png_16_bits(colour)
    assert np.array_equal(pixels(content, channels=3), colour >> 8)
    grey = pixels(content, channels=1, bits=16)[:, :, 0]
    assert np.abs(grey - colour @ [0.299, 0.587, 0.114]).max() < 2
    clear = np.zeros((3, 3, 4), np.uint16)
    clear[0, :, 3] = 65535
    on_white = pixels(png_16_bits(clear), channels=3, bits=16)
    assert (on_white[0] == 0).all()
    assert (on_white[1:] == 65535).all()
    with pytest.raises(UserError, match="x: 4 channels, not 5 channels"):
        pixels(png_16_bits(clear), channels=5, bits=16, name="x")
    with pytest.raises(UserError, match="x: corrupt or truncated image"):
        pixels(content[:-60], channels=3, bits=16, name="x")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_png_of_16_bits_is_turned_as_pillow_turns_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = png_16_bits(noise(5, 7, 3), more=exif.tobytes().removeprefix(b"Exif\0\0"))
    found = pixels(content, channels=3, bits=16)
    assert np.array_equal(found >> 8, pixels(content, channels=3))
    assert found.shape[:2] == ((5, 7) if orientation < 5 else (7, 5))


def test_values_of_8_bits_are_stretched_to_16() -> None:
    image = noise(5, 5, 3, dtype=np.uint8)
    content = encoded(Image.fromarray(image), "PNG")
    for channels in (1, 3):
        eight = decode(content, size=5, channels=channels)
        sixteen = decode(content, size=5, channels=channels, bits=16)
        assert np.array_equal(sixteen, eight.astype(np.uint16) * 257)


def test_what_would_lose_bits_or_channels_is_named() -> None:
    colour = noise(5, 5, 3)
    content = tiff(colour)
    assert np.array_equal(pixels(content, channels=3), colour >> 8)
    with pytest.raises(UserError, match=r"x: several channels of 16 bits.*save it as \.npy"):
        pixels(content, channels=3, bits=16, name="x")
    with pytest.raises(UserError, match=r"x: interlaced, with several channels of 16 bits"):
        pixels(png_16_bits(colour[:1, :1], interlaced=1), channels=3, bits=16, name="x")
    many = tiff(noise(5, 5, 6, dtype=np.uint8))
    with pytest.raises(UserError, match=r"x: 6 channels, of which only 3 can be read"):
        pixels(many, channels=6, name="x")


def test_every_channel_of_a_picture_and_pages_as_channels() -> None:
    for mode, channels in (("RGBA", 4), ("LA", 2)):
        image = noise(6, 6, channels, dtype=np.uint8)
        content = encoded(Image.fromarray(image, mode), "PNG")
        assert np.array_equal(pixels(content, channels=channels), image)
    for dtype, bits in ((np.uint8, 8), (np.uint16, 16)):
        stack = noise(7, 6, 5, dtype=dtype)
        pages = [Image.fromarray(np.ascontiguousarray(stack[:, :, at])) for at in range(5)]
        content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        assert np.array_equal(pixels(content, channels=5, bits=bits), stack)
        with pytest.raises(UserError, match="x: 5 pages, not 4 channels"):
            pixels(content, channels=4, bits=bits, name="x")
    other = [pages[0], Image.new("I;16", (3, 3))]
    content = encoded(other[0], "TIFF", save_all=True, append_images=other[1:])
    with pytest.raises(UserError, match="its pages differ in size"):
        pixels(content, channels=2, bits=16)
    with pytest.raises(UserError, match="3 channels, not 5 channels"):
        pixels(encoded(Image.new("RGB", (3, 3)), "PNG"), channels=5)
    with pytest.raises(UserError, match="a palette, not 2 channels"):
        pixels(encoded(Image.new("RGB", (3, 3)).quantize(2), "PNG"), channels=2)


@pytest.mark.parametrize("shape", [(40, 40), (31, 50), (7, 9), (1, 300)])
def test_other_images_are_resized_as_those_of_8_bits_are(shape: tuple[int, int]) -> None:
    image = noise(*shape, 3, dtype=np.uint8) // 4 + 96  # nothing is cut off at 0 or 255
    eight = fit(image, 16)
    for channels in (1, 2, 5):  # each channel for itself
        wide = np.ascontiguousarray(image[:, :, np.arange(channels) % 3])
        assert np.array_equal(fit(wide, 16), eight[np.arange(channels) % 3])
    sixteen = fit(image.astype(np.uint16) * 257, 16)
    assert sixteen.dtype == np.uint16
    assert np.abs(sixteen / 257 - eight).max() < 1.3  # those of 8 bits are rounded twice
    white = fit(np.full((*shape, 2), 65535, np.uint16), 16)
    assert (white == 65535).all()


def test_equal_values_of_8_and_16_bits_are_different_images() -> None:
    small = noise(4, 4, 1, dtype=np.uint8)
    assert content_hash(small) != content_hash(small.astype(np.uint16))
    swapped = small.astype(np.uint16)
    assert content_hash(swapped) == content_hash(swapped.astype(">u2"))


def test_a_folder_of_arrays_and_more_of_them(tmp_path: Path, config: Configured) -> None:
    for number in range(80):
        path = tmp_path / f"pictures/{'ab'[number % 2]}/{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(npy(noise(9, 8, 6, seed=number)))
    given = config(channels=6, bits=16, size=8)
    places = {"root": tmp_path, "downloads": tmp_path / "down", "out": tmp_path / "out"}
    card = prepare(given, **places)
    assert (card.form.channels, card.form.bits, card.total()) == (6, 16, 80)
    sample = decode(tmp_path / "out/sample.npy", size=8, channels=6, bits=16)
    assert np.array_equal(sample, load_split(tmp_path / "out", "test").inputs[0])
    made = decode(tmp_path / "pictures/a/0.npy", size=8, channels=6, bits=16)
    splits = [load_split(tmp_path / "out", name) for name in ("train", "test", "gate")]
    assert any(np.array_equal(made, image) for split in splits for image in split.inputs)
    assert 0.4 < min(card.form.mean) < max(card.form.mean) < 0.6
    more = tmp_path / "more/a/new.npy"
    more.parent.mkdir(parents=True)
    more.write_bytes(npy(noise(9, 8, 6, seed=500)))
    known = sources.read(given, root=tmp_path, downloads=tmp_path)
    place = added.place(tmp_path, given)
    assert added.take_in(tmp_path / "more", known, place, new_class=False).added == {"a": 1}
    assert prepare(given, **places).total() == 81
    (tmp_path / "pictures/a/0.npy").write_bytes(npy(noise(9, 8, 5)))
    with pytest.raises(UserError, match=r"a/0\.npy: an array uint16 \[9, 8, 5\], not of 6 chann"):
        prepare(given, **places)


def test_known_sets_have_their_own_channels(tmp_path: Path, config: Configured) -> None:
    for changes in ({"channels": 3}, {"bits": 16}):
        with pytest.raises(UserError, match="digits: its images have 1 channels of 8 bits"):
            sources.read(config(source="digits", **changes), root=tmp_path, downloads=tmp_path)
