from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.data.class_folders import layout

YEARS = ("2023", "2024")


def names(outer: tuple[str, ...], inner: tuple[str, ...], top: str = "") -> list[str]:
    return [f"{top}{above}/{below}/1.jpg" for above in outer for below in inner]


@pytest.mark.parametrize("top", ["", "top/", "train/", "a/train/"])
@pytest.mark.parametrize(
    "inner", [YEARS, ("2023-01-05", "2023-01-06"), ("2023_12",), ("2023/05", "2024/05")]
)
def test_dates_in_each_class_are_no_classes(top: str, inner: tuple[str, ...]) -> None:
    found = layout(names(("cat", "dog"), inner, top), "x")
    assert found.classes == ("cat",) * len(inner) + ("dog",) * len(inner)
    assert "the classes are the 2 folders (cat, dog)" in found.notes[0]


def test_dates_of_single_classes_are_no_classes_either() -> None:
    assert layout(["cat/2023/1.jpg", "dog/2024/1.jpg"], "x").classes == ("cat", "dog")


@pytest.mark.parametrize("outer", [YEARS, ("part1", "part2"), ("batch-01", "batch-02")])
def test_numbered_parts_above_the_classes_do_not_count(outer: tuple[str, ...]) -> None:
    found = layout(names(outer, ("cat", "dog")), "x")
    assert found.classes == ("cat", "dog") * 2
    assert found.notes == (
        f"the classes are the innermost folders, not the 2 folders ({', '.join(outer)}) above them",
    )


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (("cat", "dog"), ("left", "right")),
        (("cat", "dog"), ("1", "2")),
        (("1", "2"), ("3", "4")),  # digits in parts, or parts of digits
        (("1", "2"), YEARS),
        (("indoor", "outdoor"), ("0", "1")),
    ],
)
def test_two_readings_are_refused(outer: tuple[str, ...], inner: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^data\.path = 'x': two readings: .*CSV of path and"):
        layout(names(outer, inner), "x")


def test_a_class_that_is_known_elsewhere_may_have_several_places() -> None:
    more = ["cat/1.jpg", "dog/1.jpg", "new/cat/2.jpg", "old/cat/3.jpg"]
    assert layout(more, "x").classes == ("cat", "dog", "cat", "cat")


@given(
    st.sets(st.text("abcdefgh", min_size=1, max_size=4), min_size=2, max_size=6),
    st.sets(st.sampled_from(["1999", "2023", "2024-05"]), min_size=1),
    st.sampled_from(["", "Train/", "pictures/"]),
)
def test_flat_and_dated_folders_have_the_same_classes(
    classes: set[str], dates: set[str], top: str
) -> None:
    labels = tuple(sorted(classes))
    flat = layout([f"{top}{label}/1.jpg" for label in labels], "x")
    assert flat.classes == labels
    assert flat.notes == ()
    dated = layout(names(labels, tuple(sorted(dates)), top), "x")
    assert set(dated.classes) == classes
    assert len(dated.classes) == len(classes) * len(dates)


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("held", ["val", "valid", "validation"])
def test_validation_beside_train_is_official(train: str, held: str) -> None:
    files = [f"{split}/{label}/1.jpg" for split in (train, held) for label in ("cat", "dog")]
    found = layout(files, "x")
    assert found.official is None
    assert found.validation == (False, False, True, True)
    files += ["Testing/cat/1.jpg", "Testing/dog/1.jpg"]
    found = layout(files, "x")
    assert found.official == (False,) * 4 + (True,) * 2
    assert found.validation == (False, False, True, True, False, False)


@pytest.mark.parametrize("top", ["", "top/"])
def test_images_without_a_label_are_no_class_named_test(top: str) -> None:
    files = [f"{top}{name}" for name in ("train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg")]
    with pytest.raises(UserError, match=r"test/1\.jpg is not in a class folder; needed"):
        layout(files, "x")
    # A class may have such a name.
    found = layout([f"{top}{name}" for name in ("train/1.jpg", "car/1.jpg", "test/1.jpg")], "x")
    assert found.classes == ("train", "car", "test")
    inside = layout([f"{top}{name}" for name in ("train/train/1.jpg", "train/car/1.jpg")], "x")
    assert inside.classes == ("train", "car")


def test_images_above_and_in_inner_folders_are_refused() -> None:
    with pytest.raises(UserError, match=r"cat/1\.jpg is .* \(cat also holds folders with images"):
        layout(["cat/1.jpg", "cat/kitten/2.jpg", "dog/1.jpg"], "x")


def test_without_train_the_validation_images_are_trained_on() -> None:
    found = layout(names(("val", "test"), ("cat", "dog")), "x")
    assert found.validation is None
    assert found.official == (False, False, True, True)


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_of_the_splits_must_agree(split: str) -> None:
    files = [*names(("train",), ("cat", "dog", "fox")), *names((split,), ("cat", "hose"))]
    with pytest.raises(UserError, match=r"disagree: \w+ has 1 class \(hose\) that train lacks"):
        layout(files, "x")
    found = layout(files[:-1], "x")
    assert found.notes[0].endswith(" set has no image of 2 classes (dog, fox)")


def test_one_name_in_two_unicode_forms_is_one_class() -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    found = layout([f"{composed}/1.jpg", f"{split}/2.jpg", f"ta{split}/3.jpg"], "x")
    assert found.classes == (composed, composed, f"ta{split}")  # alone, a name stays as it is
    assert found.notes == (f"1 class ({composed}) written in two Unicode forms: read as one",)


def test_other_formats_and_empty_folders_are_told() -> None:
    files = ["cat/1.jpg", "cat/2.HEIC", "dog/1.jpg", "dog/3.avif", ".x/4.heic", "dog/notes.txt"]
    folders = ["cat", "dog", "fox", ".git", "dog/inner", "empty", "."]
    found = layout(files, "x", folders)
    assert found.notes[0] == "2 folders (empty, fox) without an image: no class"
    assert "2 images (cat/2.HEIC, dog/3.avif) of other formats left out" in found.notes[1]
    assert len(found.ignored) == 4
    with pytest.raises(UserError, match=r"no images; .*; 1 image \(cat/2\.HEIC\) of other formats"):
        layout(["cat/2.HEIC"], "x")


@pytest.mark.parametrize("ending", ["jfif", "JPE", "ppm", "PGM"])
def test_more_endings_of_images(ending: str) -> None:
    found = layout([f"cat/1.{ending}", "dog/1.jpg"], "x")
    assert found.ignored == ()


def test_thousands_of_classes_in_the_order_of_strings() -> None:
    labels = [str(number) for number in range(5000)]
    found = layout([f"{label}/1.jpg" for label in labels], "x")
    assert found.classes == tuple(labels)
    assert found.notes == ()
