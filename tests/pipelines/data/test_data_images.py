from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin

from pipelines.core.errors import UserError
from pipelines.data import images
from pipelines.data.images import content_hash, decode, fit, pixels

ARRAYS = st.tuples(st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])).flatmap(
    lambda shape: hnp.arrays(np.uint8, shape)
)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_image(array: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


@given(ARRAYS, st.integers(1, 40))
def test_a_file_and_its_array_give_the_same_pixels(array: NDArray[np.uint8], size: int) -> None:
    channels = array.shape[2]
    file = encoded(as_image(array))
    assert np.array_equal(pixels(file, channels=channels), array)
    made = decode(file, size=size, channels=channels)
    assert made.shape == (channels, size, size)
    assert made.dtype == np.uint8
    assert np.array_equal(made, fit(array, size))


@given(hnp.arrays(np.uint8, st.integers(1, 16).map(lambda n: (n, n, 3))))
def test_an_image_of_the_right_size_is_not_changed(array: NDArray[np.uint8]) -> None:
    assert np.array_equal(fit(array, len(array)), array.transpose(2, 0, 1))


def test_bytes_and_path_agree(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(1, 9, 5))
    assert np.array_equal(
        decode(path, size=4, channels=3), decode(path.read_bytes(), size=4, channels=3)
    )


def test_the_centre_is_cropped() -> None:
    wide = np.zeros((4, 10, 1), np.uint8)
    wide[:, 3:7] = 200
    assert (fit(wide, 4) == 200).all()
    assert (fit(wide.transpose(1, 0, 2), 4) == 200).all()


@given(hnp.arrays(np.uint8, (20, 40, 3)))
def test_fitting_is_resize_of_the_shorter_side_then_crop(array: NDArray[np.uint8]) -> None:
    resized = np.asarray(Image.fromarray(array).resize((20, 10), Image.Resampling.BICUBIC))
    assert np.array_equal(fit(array, 10), resized[:, 5:15].transpose(2, 0, 1))


def test_reduction_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., np.newaxis]
    small = fit(board, 8).astype(int)
    assert np.abs(small - 127).max() <= 3  # nearest or unfiltered sampling gives 0 and 255


def test_a_strip_of_extreme_shape_stays_cheap() -> None:
    assert fit(np.full((1, 60_000, 1), 7, np.uint8), 32).tolist() == [[[7] * 32] * 32]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = np.arange(24, dtype=np.uint8).reshape(4, 6, 1) * 10
    # What a camera stores so that the viewer's turn gives the upright image.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = encoded(as_image(np.ascontiguousarray(stored)), kind, exif=exif)
    assert np.array_equal(pixels(file, channels=1), upright)


def test_broken_exif_does_not_lose_the_image() -> None:
    image = as_image(np.full((4, 4, 3), 9, np.uint8))
    file = encoded(image, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")
    assert (decode(file, size=4, channels=3) == 9).all()


def test_transparency_shows_white() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    half = encoded(Image.new("LA", (4, 4), (0, 128)))
    assert (decode(clear, size=4, channels=3) == 255).all()
    assert (decode(half, size=4, channels=1) == 127).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert (decode(encoded(palette, transparency=0), size=4, channels=3) == 255).all()
    assert decode(encoded(palette), size=4, channels=3)[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_keep_the_upper_eight() -> None:
    deep = Image.fromarray(np.array([[0, 256], [0x7F80, 0xFFFF]], np.uint16))
    for kind in ("PNG", "TIFF"):
        assert decode(encoded(deep, kind), size=2, channels=1).tolist() == [[[0, 1], [0x7F, 255]]]
        assert decode(encoded(deep, kind), size=2, channels=3)[2].tolist() == [[0, 1], [0x7F, 255]]


def test_cmyk_bilevel_and_every_format() -> None:
    white = encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG")
    assert (decode(white, size=4, channels=3) >= 254).all()
    assert (decode(encoded(Image.new("1", (4, 4), 1)), size=4, channels=1) == 255).all()
    for kind in images.FORMATS:
        assert decode(encoded(Image.new("RGB", (9, 6), "red"), kind), size=4, channels=3).shape == (
            3,
            4,
            4,
        )


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(file, size=4, channels=1) == 50).all()


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM"])
)
def test_bytes_that_are_not_an_image_are_a_user_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(UserError, match=r"^folder/x\.png: "):
        decode(head + tail, size=4, channels=3, name="folder/x.png")


def test_a_truncated_image_is_named(tmp_path: Path, picture: Callable[..., bytes]) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(picture(1, 64, 64)[:5000])
    with pytest.raises(UserError, match=r"cut\.png: corrupt or truncated image"):
        decode(path, size=4, channels=3)
    jpeg = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    with pytest.raises(UserError, match=r"a\.jpg: corrupt or truncated image"):
        decode(jpeg[: len(jpeg) // 2], size=4, channels=3, name="a.jpg")


def test_absent_unknown_and_oversized_are_users_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"none\.png: cannot be read: No such file"):
        decode(tmp_path / "none.png", size=4, channels=3)
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: not a readable image; formats: JPEG"):
        decode(path, size=4, channels=3)
    with pytest.raises(UserError, match=r"f\.tif: 32-bit pixels"):
        decode(encoded(Image.new("F", (4, 4)), "TIFF"), size=4, channels=3, name="f.tif")
    monkeypatch.setattr(images, "MAX_BYTES", 4)
    with pytest.raises(UserError, match=r"text\.png: larger than"):
        decode(path, size=4, channels=3)


@pytest.mark.parametrize("edge", [8001, 10_000, 20_000])  # below and above Pillow's own limits
def test_a_decompression_bomb_is_refused_before_it_unfolds(edge: int) -> None:
    file = io.BytesIO()
    header = b"IHDR" + edge.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    PngImagePlugin.putchunk(file, header[:4], header[4:])
    PngImagePlugin.putchunk(file, b"IDAT", b"")
    bomb = b"\x89PNG\r\n\x1a\n" + file.getvalue()
    with pytest.raises(UserError, match=r"bomb\.png: more than 64 million pixels"):
        decode(bomb, size=4, channels=3, name="bomb.png")


def test_the_content_hash_knows_shape_and_pixels_alone() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert content_hash(array) == content_hash(pixels(encoded(as_image(array)), channels=3))
    assert content_hash(array) == content_hash(np.asfortranarray(array))
    assert content_hash(array) != content_hash(array.reshape(4, 2, 3))
    changed = array.copy()
    changed[0, 0, 0] += 1
    assert content_hash(array) != content_hash(changed)
