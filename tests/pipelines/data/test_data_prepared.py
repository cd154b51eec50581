"""Prepared data: what is described, checked, and read back."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from classifiers import classifier_form

from pipelines.core.errors import UserError
from pipelines.data import schema
from pipelines.data.card import picture, statistics
from pipelines.data.prepared import SPLITS, Split, load_card, load_split, save_split


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
    return schema.check(splits, classifier_form(classes, 4, 1, (0.5,), (0.1,)))


def test_the_schema_check_passes_what_is_sound_and_warns_of_a_class_absent() -> None:
    assert check(sound()) == ()
    assert check(sound(), "abc") == ("1 class (c) without an example in train",)


def test_the_schema_check_finds_what_is_wrong() -> None:
    good = split([0, 1])
    for bad, message in (
        (dataclasses.replace(good, inputs=good.inputs.astype(np.float32)), "inputs must be uint8"),
        (split([0, 1], size=5), r"uint8 \[2, 1, 4, 4\], not uint8 \[2, 1, 5, 5\]"),
        (
            dataclasses.replace(good, targets=good.targets.astype(np.int32)),
            r"must be int64 \[2\], not int32 \[2\]",
        ),
        (dataclasses.replace(good, targets=good.targets[:1]), r"must be int64 \[2\]"),
        (split([0, 2]), "label 2 is not a class; allowed: 0 to 1"),
        (split([-1, 1]), "label -1 is not a class"),
        (dataclasses.replace(good, hashes=good.hashes[::-1]), "order of their content hash"),
        (split([]), "the split train is empty"),
        (split([1, 1]), r"examples of one class only \(b\)"),
        (split([0, 1], first=10), f"example {10:064x} is in both train and validation"),
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
    with pytest.raises(UserError, match=r"examples per class are not those of card\.json"):
        load_split(directory, "gate")
    save_split(directory, "gate", dataclasses.replace(whole, targets=whole.targets + 9))
    with pytest.raises(UserError, match=r"gate\.safetensors: label .* is not a class"):
        load_split(directory, "gate")
    path.unlink()
    with pytest.raises(UserError, match=r"gate\.safetensors: absent"):
        load_split(directory, "gate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form.size": "big"}, "size"),
        ({"form.classes": ["0"]}, "disagree"),
        ({"form.mean": [0.1, 0.2]}, "one finite number per channel"),
        ({"form.deviation": [0.0]}, "deviations above 0"),
        ({"form.mean": [float("nan")]}, "one finite number|mean"),
        ({"form.bits": 7}, "bits = 7"),
        ({"counts": {}}, "disagree"),
    ],
)
def test_a_wrong_card_is_refused(
    digits: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    directory = copied(digits, tmp_path)
    path = directory / "card.json"
    card = json.loads(path.read_text())
    for name, value in change.items():
        (card["form"] if "." in name else card)[name.rpartition(".")[2]] = value
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"card\.json: not a data card: .*({message})"):
        load_card(directory)
    path.write_text("{")
    with pytest.raises(UserError, match=r"card\.json: not a data card: the file"):
        load_card(directory)
