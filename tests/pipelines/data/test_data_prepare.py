from __future__ import annotations

import io
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError, disk_error
from pipelines.core.files import sha256_file
from pipelines.data.card import describe
from pipelines.data.prepare import prepare
from pipelines.data.prepared import SPLITS, Card, load_card, load_split

Configured = Callable[..., DataConfig]


def run(config: DataConfig, tmp_path: Path, out: str = "prepared") -> Card:
    return prepare(config, root=tmp_path, downloads=tmp_path / "down", out=tmp_path / out)


def contents(directory: Path) -> dict[str, str]:
    """Return the hash of each file."""
    return {path.name: sha256_file(path) for path in directory.iterdir()}


def where(directory: Path) -> dict[str, str]:
    return {key: name for name in SPLITS for key in load_split(directory, name).hashes}


def test_digits_are_prepared_whole(digits: Path) -> None:
    card = load_card(digits)
    assert (card.form.size, card.form.channels, card.classes) == (28, 1, tuple("0123456789"))
    assert card.total() == 5000
    splits = {name: load_split(digits, name) for name in SPLITS}
    for name, share in (("train", 0.70), ("validation", 0.05), ("gate", 0.10), ("test", 0.15)):
        split = splits[name]
        assert len(split.hashes) == card.total(name) == len(split.inputs) == len(split.targets)
        assert abs(len(split.hashes) / 5000 - share) < 0.02
        assert list(split.hashes) == sorted(set(split.hashes))
    pixels = splits["train"].inputs / 255
    assert card.form.mean == pytest.approx([pixels.mean()])
    assert card.form.deviation == pytest.approx([pixels.std()])
    assert not card.warnings
    text = describe(card)
    assert "digits: 5000 images of 10 classes, 28 × 28 grey" in text
    with Image.open(digits / card.picture) as image:
        image.load()
        assert image.width > 500
        assert len(set(np.asarray(image).ravel().tolist())) > 50
    assert sorted(path.name for path in digits.iterdir()) == sorted(
        [f"{name}.safetensors" for name in SPLITS] + ["card.json", "examples.png", "sample.png"]
    )


def test_equal_input_gives_equal_bytes(tmp_path: Path, config: Configured, digits: Path) -> None:
    run(config(source="digits"), tmp_path)
    assert contents(tmp_path / "prepared") == contents(digits)


def test_file_names_and_order_do_not_matter(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 60)
    run(config(), tmp_path, "a")
    for path in list(root.rglob("*.png")):
        path.rename(path.with_name(f"x{999 - int(path.stem)}.png"))
    run(config(), tmp_path, "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_size_or_seed(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    fill(tmp_path / "pictures", ("cat", "dog"), 60)
    first = run(config(), tmp_path, "a")
    larger = run(config(size=40), tmp_path, "b")
    assert (first.form.size, larger.form.size) == (32, 40)
    assert where(tmp_path / "a") == where(tmp_path / "b")  # the split does not hang on the size
    run(config(seed=1), tmp_path, "c")
    assert where(tmp_path / "a") != where(tmp_path / "c")
    hashes = {load_card(tmp_path / name).data_hash for name in "abc"}
    assert len(hashes) == 3


def test_500_more_images_move_no_image_to_another_split(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    fill(tmp_path / "pictures", ("cat", "dog"), 150)
    before = run(config(), tmp_path)
    old = where(tmp_path / "prepared")
    fill(tmp_path / "pictures", ("cat", "dog", "fox"), 150, start=150)
    fill(tmp_path / "pictures", ("fox",), 50, start=300)
    after = run(config(), tmp_path)
    new = where(tmp_path / "prepared")
    assert (before.total(), after.total()) == (300, 800)
    assert all(new[key] == split for key, split in old.items())
    assert after.total("train") > before.total("train") + 250
    assert after.data_hash != before.data_hash


def test_500_more_real_photographs_move_no_image_to_another_split(
    shared: Path, tmp_path: Path, config: Configured
) -> None:
    with tarfile.open(shared / "cifar10/test.tar.gz") as tar:
        for member in tar:
            number = int(Path(member.name).stem) if member.isreg() else 100
            file = tar.extractfile(member) if number < 100 else None
            if file is not None:
                parent = "first" if number < 50 else "later"
                path = tmp_path / parent / Path(member.name).parent.name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    shutil.copytree(tmp_path / "first", tmp_path / "pictures")
    assert run(config(), tmp_path).total() == 500
    old = where(tmp_path / "prepared")
    shutil.copytree(tmp_path / "later", tmp_path / "pictures", dirs_exist_ok=True)
    assert run(config(), tmp_path).total() == 1000
    new = where(tmp_path / "prepared")
    assert len(old) == 500
    assert all(new[key] == split for key, split in old.items())


def test_an_official_test_set_stays_test(
    tmp_path: Path, config: Configured, fill: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    root = tmp_path / "pictures"
    fill(root / "train", ("cat", "dog"), 80)
    fill(root / "test", ("cat", "dog"), 20, start=500)
    twin = picture(7)  # train/cat/7.png once more
    (root / "test/cat/twin.png").write_bytes(twin)
    (root / "test/cat/again.png").write_bytes(twin)
    card = run(config(), tmp_path)
    assert card.official_test
    assert card.total("test") == 42  # never thinned
    assert card.duplicates == 1  # the copy in train
    assert card.total() == 201
    test = load_split(tmp_path / "prepared", "test")
    assert len(test.hashes) - len(set(test.hashes)) == 1
    assert "the test set is the source's own" in describe(card)


def test_duplicates_and_conflicts_are_told(
    tmp_path: Path, config: Configured, fill: Callable[..., Path], picture: Callable[..., bytes]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 60)
    (root / "cat/copy.png").write_bytes(picture(5))
    with Image.open(io.BytesIO(picture(6))) as image:  # other bytes, the same pixels
        image.save(root / "cat/copy.bmp")
    (root / "dog/lie.png").write_bytes(picture(9))
    (root / "dog/notes.txt").write_text("x")
    (root / "dog/plain.png").write_bytes(_plain())
    card = run(config(), tmp_path)
    assert card.duplicates == 2
    assert card.conflicts == ("cat/9.png", "dog/lie.png")
    assert list(card.files) == ["pictures: 124 images"]
    assert card.constant == 1
    assert card.ignored == 1
    assert card.total() == 120
    text = describe(card)
    assert "warning: 2 images (cat/9.png, dog/lie.png) left out: equal pixels" in text
    assert "warning: 1 image is of one colour" in text
    assert "exact duplicates left out: 2" in text


def _plain() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def test_a_class_that_train_lacks_is_a_warning(tmp_path: Path, shared: Path) -> None:
    config = DataConfig(
        "images",
        str(shared / "imagenet-sample/images.tar"),
        "",
        "",
        16,
        0,
        8,
        0,
        0,
        0.05,
        0.10,
        0.15,
    )
    card = run(config, tmp_path)
    assert len(card.classes) == 1000
    assert card.total() == 1000
    missing = 1000 - card.total("train")
    assert card.warnings[0].startswith(f"{missing} classes (n0")
    assert np.isfinite([*card.form.mean, *card.form.deviation]).all()
    assert min(card.form.deviation) > 0.1
    assert str(tmp_path) not in (tmp_path / "prepared/card.json").read_text()


def test_a_limit(tmp_path: Path, config: Configured, digits: Path) -> None:
    card = run(config(source="digits", limit=300), tmp_path)
    assert card.total() == 300
    some, everything = where(tmp_path / "prepared"), where(digits)
    assert some.items() <= everything.items()  # the splits are the same
    assert max(some) < min(everything.keys() - some.keys())


def test_an_empty_split_is_named_and_nothing_is_written(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    fill(tmp_path / "pictures", ("cat", "dog"), 2)
    with pytest.raises(UserError, match=r"the split \w+ is empty \(4 examples in all\)"):
        run(config(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_failure_leaves_what_was_prepared_before(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 60)
    run(config(), tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    (root / "cat/3.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cat/3\.png: not a readable image"):
        run(config(), tmp_path)
    after = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "prepared"]


def test_a_full_disk_leaves_what_was_prepared_before(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    fill(tmp_path / "pictures", ("cat", "dog"), 60)
    run(config(), tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses longer files
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            run(config(seed=1), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the file would pass the size limit" in str(disk_error(caught.value))
    after = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    assert after == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "prepared"]
