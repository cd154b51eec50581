"""What real folders hold besides sound images: handled, or named in one message."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.data import image_folder, sources
from pipelines.data.card import describe
from pipelines.data.collection import Collection
from pipelines.data.images import decode
from pipelines.data.prepare import prepare
from pipelines.data.prepared import Card

PINNED = "c29e1c22e7805b48855f4628970f1265e50eda84ad55432c8e8cd7fbf367d59d"


@pytest.fixture
def run(tmp_path: Path, config: Callable[..., DataConfig]) -> Callable[[], Card]:
    return lambda: prepare(
        config(size=8), root=tmp_path, downloads=tmp_path / "down", out=tmp_path / "out"
    )


def read(path: Path) -> Collection:
    return image_folder.read(path, where=path.name, sha256="", size=8, channels=3)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_plain_class_folders_have_the_hash_that_they_always_had(
    tmp_path: Path, fill: Callable[..., Path], run: Callable[[], Card]
) -> None:
    root = fill(tmp_path / "pictures", ("10", "9", "cat", "Dog"), 30)
    card = run()
    assert card.classes == ("10", "9", "Dog", "cat")  # as strings: the order is in the hash
    assert card.data_hash == PINNED
    assert card.warnings == ()
    # System files, hidden files, empty folders and links to nothing do not change it.
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "cat/._1.png", "__MACOSX/cat/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (root / "empty").mkdir()
    (root / "cat/gone.png").symlink_to("nowhere")
    (root / "cat/loop").symlink_to(root)
    (root / "again").symlink_to(root / "Dog")
    (root / "cat/x.heic").write_bytes(b"x")
    (root / os.fsdecode(b"cat/\xff.avif")).write_bytes(b"x")  # a name that is not UTF-8
    card = run()
    assert card.data_hash == PINNED
    assert card.ignored == 7
    text = describe(card)
    for part in (
        "warning: 1 folder (empty) without an image",
        "warning: 1 broken link or device (cat/gone.png) left out",
        "warning: 2 images (cat/x.heic, cat/\\udcff.avif) of other formats left out",
        "warning: 2 links (again, cat/loop) to folders that are read anyway left out",
    ):
        assert part in text, text


def test_all_bad_images_are_named_in_one_message(
    tmp_path: Path, fill: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 30)
    large = picture(1, 300, 300)
    bad = {
        "cat/3.png": (b"", "an empty file"),
        "cat/4.png": (bytes(3000), "not a readable image"),
        "dog/5.png": (picture(5)[:100], "corrupt or truncated image"),
        "dog/6.png": (large[: len(large) // 2], "corrupt or truncated image"),  # in a thread
        "dog/7.png": (encoded(Image.new("F", (4, 4)), "TIFF"), "32-bit pixels"),
    }
    for name, (content, _) in bad.items():
        (root / name).write_bytes(content)
    bad["dog/8.png"] = (b"", "cannot be read: Input/output error")
    (root / "dog/8.png").unlink()
    (root / "dog/8.png").symlink_to("/proc/self/mem")  # a file whose reading fails
    with pytest.raises(UserError) as caught:
        read(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 images cannot be used:"
    for line, (name, (_, reason)) in zip(lines[1:], sorted(bad.items()), strict=True):
        assert line.startswith(f"  {root / name}: {reason}")


def test_very_many_bad_images_are_counted(tmp_path: Path, fill: Callable[..., Path]) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 30)
    for number in range(25):
        (root / f"dog/{number}.png").write_bytes(b"x")
    with pytest.raises(UserError, match="25 images cannot be used") as caught:
        read(root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  and 5 more"


def test_images_and_folders_that_may_not_be_read(tmp_path: Path, fill: Callable[..., Path]) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 5)
    for number in (1, 2):
        (root / f"dog/{number}.png").chmod(0)
    if os.access(root / "dog/1.png", os.R_OK):
        pytest.skip("this process may read everything")
    with pytest.raises(UserError, match=r"(?s)2 images .*1\.png: cannot be read: Permission"):
        read(root)
    (root / "dog").chmod(0)
    try:
        with pytest.raises(UserError, match="dog: cannot be read: Permission denied"):
            read(root)
    finally:
        (root / "dog").chmod(0o755)


def test_classes_of_one_image_or_that_differ_in_case_are_told(
    tmp_path: Path,
    fill: Callable[..., Path],
    run: Callable[[], Card],
    picture: Callable[..., bytes],
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "Cat", "fox"), 40)
    (root / "rare").mkdir()
    (root / "rare/1.png").write_bytes(picture(99_999))
    warnings = run().warnings
    assert "1 class (rare) with one example only" in warnings
    assert "2 classes (Cat, cat) with names that differ in case only" in warnings


def test_names_that_break_naive_code_are_ordinary_classes(
    tmp_path: Path, fill: Callable[..., Path], run: Callable[[], Card]
) -> None:
    names = ("-rf", "a,b", 'it\'s "x"', "~", "a b", "cafe\u0301", "日本", "%s{}", "*", "#1", "con")
    fill(tmp_path / "pictures", names, 12)
    card = run()
    assert card.classes == tuple(sorted(names))
    assert unicodedata.normalize("NFC", "cafe\u0301") not in card.classes
    assert card.total() == 12 * len(names)
    (tmp_path / "pictures/a\nb").mkdir()
    (tmp_path / "pictures/a\nb/1.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"not a printable UTF-8 name: 'a\\nb/1\.png'"):
        run()


def test_an_image_in_train_and_test_counts_for_the_test_and_is_told(
    tmp_path: Path,
    fill: Callable[..., Path],
    run: Callable[[], Card],
    picture: Callable[..., bytes],
) -> None:
    root = tmp_path / "pictures"
    for split, start in (("train", 0), ("val", 400), ("test", 500)):
        fill(root / split, ("cat", "dog"), 60 if split == "train" else 10, start=start)
    (root / "test/cat/train.png").write_bytes(picture(7))
    (root / "test/cat/val.png").write_bytes(picture(401))
    (root / "val/dog/train.png").write_bytes(picture(1008))
    (root / "test/dog/lie.png").write_bytes(picture(9))  # a cat in train
    card = run()
    assert card.leaks == 4
    assert card.conflicts == ("train/cat/9.png",)
    assert (card.total("test"), card.total("validation")) == (23, 20)
    assert card.total() == 160
    text = describe(card)
    assert "the validation and test sets are the source's own" in text
    assert "4 images (train/cat/7.png, train/cat/9.png, train/dog/8.png, val/cat/401.png)" in text


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (Image.new("RGB", (6, 4), (200, 0, 0)), "JPEG", {"quality": 100}),
        (Image.new("CMYK", (6, 4), (0, 255, 255, 55)), "TIFF", {}),
        (Image.new("RGBA", (6, 4), (200, 0, 0, 255)), "WEBP", {"lossless": True}),
        (Image.new("RGB", (6, 4), (200, 0, 0)).quantize(4), "PNG", {}),
        (Image.new("RGB", (6, 4), (200, 0, 0)), "PPM", {}),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jfif"])
def test_the_content_decides_the_format_not_the_name(
    image: Image.Image, kind: str, options: dict[str, object], name: str
) -> None:
    found = decode(encoded(image, kind, **options), size=4, channels=3, name=name)
    assert np.abs(found.astype(int) - np.array([200, 0, 0])[:, None, None]).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), (value,) * 3) for value in (50, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(file, size=4, channels=1) == 50).all()


def test_the_smallest_and_a_large_image(tmp_path: Path) -> None:
    assert (decode(encoded(Image.new("1", (1, 1), 1), "PNG"), size=4, channels=3) == 255).all()
    large = encoded(Image.new("L", (8000, 6000), 7), "PNG")
    assert (decode(large, size=4, channels=1) == 7).all()


@pytest.mark.parametrize("name", ["~", "~root", "a b", "it's", '"x"', "-r"])
def test_a_path_is_taken_literally(
    tmp_path: Path, fill: Callable[..., Path], config: Callable[..., DataConfig], name: str
) -> None:
    fill(tmp_path / name / "in it", ("cat", "dog"), 2)
    given = config(path=f"{name}/in it", size=8)
    found = sources.read(given, root=tmp_path, downloads=tmp_path)
    assert found.classes == ("cat", "dog")
