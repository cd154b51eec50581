from __future__ import annotations

import dataclasses
import io
import json
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
from pipelines.data import schema
from pipelines.data.card import describe, picture, statistics
from pipelines.data.prepare import prepare
from pipelines.data.prepared import SPLITS, Card, Split, load_card, load_split, save_split

Configured = Callable[..., DataConfig]


def run(config: DataConfig, tmp_path: Path, out: str = "prepared") -> Card:
    return prepare(config, root=tmp_path, downloads=tmp_path / "down", out=tmp_path / out)


def where(directory: Path) -> dict[str, str]:
    return {key: name for name in SPLITS for key in load_split(directory, name).hashes}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    config = DataConfig("digits", "data/raw", "", "", 0, 0, 0, 0.05, 0.10, 0.15)
    prepare(config, root=root, downloads=root / "down", out=root / "prepared")
    return root / "prepared"


def test_digits_are_prepared_whole(digits: Path) -> None:
    card = load_card(digits)
    assert (card.size, card.channels, card.classes) == (28, 1, tuple("0123456789"))
    assert card.total() == 5000
    splits = {name: load_split(digits, name) for name in SPLITS}
    for name, share in (("train", 0.70), ("validation", 0.05), ("gate", 0.10), ("test", 0.15)):
        split = splits[name]
        assert len(split.hashes) == card.total(name) == len(split.images) == len(split.labels)
        assert abs(len(split.hashes) / 5000 - share) < 0.02
        assert list(split.hashes) == sorted(set(split.hashes))
    pixels = splits["train"].images / 255
    assert card.mean == pytest.approx([pixels.mean()])
    assert card.deviation == pytest.approx([pixels.std()])
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
    for path in digits.iterdir():
        assert path.read_bytes() == (tmp_path / "prepared" / path.name).read_bytes(), path.name


def test_file_names_and_order_do_not_matter(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 60)
    run(config(), tmp_path, "a")
    for path in list(root.rglob("*.png")):
        path.rename(path.with_name(f"x{999 - int(path.stem)}.png"))
    run(config(), tmp_path, "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_another_size_or_seed(
    tmp_path: Path, config: Configured, fill: Callable[..., Path]
) -> None:
    fill(tmp_path / "pictures", ("cat", "dog"), 60)
    first = run(config(), tmp_path, "a")
    larger = run(config(size=40), tmp_path, "b")
    assert (first.size, larger.size) == (32, 40)
    assert where(tmp_path / "a") == where(tmp_path / "b")  # the split does not hang on the size
    run(config(seed=1), tmp_path, "c")
    assert where(tmp_path / "a") != where(tmp_path / "c")
    hashes = {load_card(tmp_path / name).data_hash for name in "abc"}
    assert len(hashes) == 3


def test_500_more_images_move_none(
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


def test_500_more_real_photographs_move_none(
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
        "images", str(shared / "imagenet-sample/images.tar"), "", "", 16, 0, 0, 0.05, 0.10, 0.15
    )
    card = run(config, tmp_path)
    assert len(card.classes) == 1000
    assert card.total() == 1000
    missing = 1000 - card.total("train")
    assert card.warnings[0].startswith(f"{missing} classes (n0")
    assert np.isfinite([*card.mean, *card.deviation]).all()
    assert min(card.deviation) > 0.1
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
    with pytest.raises(UserError, match=r"the split \w+ is empty \(4 images in all\)"):
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


def test_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 5, 5), dtype=np.uint8)
    mean, deviation = statistics(images)
    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)), rel=1e-12)
    assert deviation == pytest.approx((images / 255).std(axis=(0, 2, 3)), rel=1e-12)
    assert statistics(np.full((1, 1, 2, 2), 51, np.uint8)) == (pytest.approx((0.2,)), (1 / 255,))


def split(labels: list[int], first: int = 0, size: int = 4) -> Split:
    n = len(labels)
    hashes = tuple(f"{first + row:064x}" for row in range(n))
    return Split(np.zeros((n, 1, size, size), np.uint8), np.array(labels, np.int64), hashes)


def test_the_picture_takes_any_class_name_and_number() -> None:
    names = [f"日本 {number} a name that is far too long" for number in range(300)]
    sheet = picture(split(list(range(300))), names)
    assert sheet.height < 20 * 70


def sound() -> dict[str, Split]:
    return {name: split([0, 1], 10 * at) for at, name in enumerate(SPLITS)}


def check(splits: dict[str, Split], classes: str = "ab") -> tuple[str, ...]:
    return schema.check(splits, size=4, channels=1, classes=classes)


def test_the_schema_check_passes_what_is_sound_and_warns_of_a_class_absent() -> None:
    assert check(sound()) == ()
    assert check(sound(), "abc") == ("1 class (c) without an image in train",)


def test_the_schema_check_finds_what_is_wrong() -> None:
    good = split([0, 1])
    for bad, message in (
        (dataclasses.replace(good, images=good.images.astype(np.float32)), "must be uint8"),
        (split([0, 1], size=5), r"must be \[2, 1, 4, 4\], not \[2, 1, 5, 5\]"),
        (dataclasses.replace(good, labels=good.labels.astype(np.int32)), r"must be int64 \[2\]"),
        (dataclasses.replace(good, labels=good.labels[:1]), r"must be int64 \[2\]"),
        (split([0, 2]), "label 2 is not a class; allowed: 0 to 1"),
        (split([-1, 1]), "label -1 is not a class"),
        (dataclasses.replace(good, hashes=good.hashes[::-1]), "order of their content hash"),
        (split([]), "the split train is empty"),
        (split([1, 1]), r"images of one class only \(b\)"),
        (split([0, 1], first=10), f"image {10:064x} is in both train and validation"),
    ):
        with pytest.raises(UserError, match=message):
            check({**sound(), "train": bad})
    with pytest.raises(UserError, match="splits must be train, validation, gate, test"):
        check({"train": good})
    for classes in ("a", "aa"):
        with pytest.raises(UserError, match="two different classes"):
            check(sound(), classes)


def copied(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "copy"))


def test_what_is_read_back_is_checked(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'dev': unknown; allowed: train, validation"):
        load_split(digits, "dev")
    for missing in (lambda: load_card(tmp_path), lambda: load_split(tmp_path, "test")):
        with pytest.raises(UserError, match="absent; the stage prepare makes it"):
            missing()
    directory = copied(digits, tmp_path)
    path = directory / "gate.safetensors"
    whole = load_split(directory, "gate")
    content = path.read_bytes()
    for broken in (content[:-10], b"", b"\x80\x04pickle", content[:20]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"gate\.safetensors: corrupt or truncated"):
            load_split(directory, "gate")
    save_split(directory, "gate", load_split(directory, "test"))
    with pytest.raises(UserError, match=r"images per class are not those of card\.json"):
        load_split(directory, "gate")
    save_split(directory, "gate", dataclasses.replace(whole, labels=whole.labels + 9))
    with pytest.raises(UserError, match=r"gate\.safetensors: label .* is not a class"):
        load_split(directory, "gate")
    path.unlink()
    with pytest.raises(UserError, match=r"gate\.safetensors: absent"):
        load_split(directory, "gate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "big"}, "size"),
        ({"classes": ["0"]}, "disagree"),
        ({"mean": [0.1, 0.2]}, "disagree"),
        ({"deviation": [0.0]}, "disagree"),
        ({"mean": [float("nan")]}, "disagree|mean"),
        ({"counts": {}}, "disagree"),
    ],
)
def test_a_card_that_is_none(
    digits: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    directory = copied(digits, tmp_path)
    path = directory / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"card\.json: not a data card: .*({message})"):
        load_card(directory)
    path.write_text("{")
    with pytest.raises(UserError, match=r"card\.json: not a data card: the file"):
        load_card(directory)
