from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.data import image_folder
from pipelines.data.collection import Collection
from pipelines.data.label_file import parse
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_split

PATHS = ("a.png", "b.png", "sub/c.png", "-d, e.png")


@pytest.fixture
def place(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    root = tmp_path / "pictures"
    for at, name in enumerate(PATHS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(at))
    return root


def read(path: Path) -> Collection:
    return image_folder.read(path, where=path.name, sha256="", size=8, channels=3)


@pytest.mark.parametrize(
    "text",
    [
        'path,label\na.png,cat\nb.png,dog\nsub/c.png,cat\n"-d, e.png",dog\n',
        "Label;X;Path\r\ncat;1;a.png\r\ndog;;b.png\r\ncat;;sub/c.png\r\ndog;;-d, e.png\r\n",
        'a.png\tcat\nb.png\tdog\n\n./sub/c.png\tcat\n"-d, e.png"\t"dog"',
        "image|class\na.png|cat\nb.png| dog \nsub\\c.png|cat\n-d, e.png|dog\n",
        'one,two\na.png,cat\nb.png,dog\nsub/../sub/c.png,cat\na.png,cat\n"-d, e.png",dog\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_dialect_is_read(place: Path, text: str, encoding: str) -> None:
    path = place / "labels.csv"
    path.write_bytes(text.encode(encoding))
    found = parse(path, "x")
    assert found.paths == PATHS
    assert found.classes == ("cat", "dog", "cat", "dog")
    assert found.splits == (None,) * 4


LABEL = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Z")), min_size=1, max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(LABEL, min_size=4, max_size=4), st.sampled_from(",;\t|"))
def test_what_pythons_writer_writes_is_read(place: Path, labels: list[str], mark: str) -> None:
    import csv
    import unicodedata

    path = place / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerows([("path", "label"), *zip(PATHS, labels, strict=True)])
    wanted = tuple(unicodedata.normalize("NFC", label) for label in labels)
    assert parse(path, "x").classes == wanted


def test_a_folder_with_a_csv_and_the_csv_itself_give_the_same(place: Path) -> None:
    path = place / "labels.csv"
    rows = [
        "path,label",
        *(f'"{name}",{"cat" if at < 2 else "dog"}' for at, name in enumerate(PATHS)),
    ]
    path.write_text("\n".join(rows))
    (place / "spare.png").write_bytes(b"x")
    by_folder, by_file = read(place), read(path)
    assert by_folder.classes == by_file.classes == ("cat", "dog")
    assert by_folder.labels.tolist() == by_file.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(by_folder.images, by_file.images)
    assert by_folder.files == by_file.files
    assert "1 file (spare.png) not in labels.csv: left out" in by_folder.notes
    assert by_file.notes == ()
    (place / "more.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"2 CSVs \(labels\.csv, more\.csv\) with path and label"):
        read(place)


def test_another_table_beside_class_folders_is_left_out(
    tmp_path: Path, fill: Callable[..., Path]
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 2)
    (root / "scores.csv").write_text("name,score\ncat,1\n")
    found = read(root)
    assert found.classes == ("cat", "dog")
    assert found.ignored == ("scores.csv",)


def test_all_wrong_rows_are_named_in_one_message(
    place: Path, picture: Callable[..., bytes]
) -> None:
    outside = place.parent / "outside.png"
    outside.write_bytes(picture(9))
    (place / "link.png").symlink_to(outside)
    (place / "loop.png").symlink_to("loop.png")
    path = place / "labels.csv"
    path.write_text(
        "path,label,split\na.png,cat,train\nb.png,,train\n,dog,train\nnone.png,dog,\n"
        f"../outside.png,dog,\n{outside},dog,\nlink.png,dog,\nloop.png,dog,\nsub,dog,\n"
        "a.png,dog,train\na.png,cat,test\nsub/c.png,dog,later\n"
        f'"b\npng",dog,\nshort\n{"x" * 300}.png,dog,\n'
    )
    with pytest.raises(UserError, match=r"labels\.csv: 14 rows are wrong:") as caught:
        parse(path, "x")
    for part in (
        "line 3: b.png has no label",
        "line 4: no path",
        "line 5: none.png is no file",
        "line 6: ../outside.png leads out of the CSV's folder",
        f"line 7: {outside} leads out of",
        "line 8: link.png leads out of",
        "line 9: loop.png is no file",
        "line 10: sub is no file",
        "line 11: a.png is dog in train, but cat in train in line 2",
        "line 12: a.png is cat in test, but cat in train in line 2",
        "line 13: split 'later' is unknown; allowed: train, val, test",
        "not printable",
        "short has no label",
    ):
        assert part in str(caught.value)


def test_many_wrong_rows_are_counted(place: Path) -> None:
    path = place / "labels.csv"
    path.write_text("path,label\n" + "".join(f"{n}.png,cat\n" for n in range(30)))
    with pytest.raises(UserError, match=r"30 rows are wrong") as caught:
        parse(path, "x")
    assert str(caught.value).splitlines()[-1].strip() == "and 10 more"
    assert len(str(caught.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"path,label\n", "no rows"),
        (b"path,breed\na.png,cat\n", "names only one of the columns path and label"),
        (b"path,label\na.png,caf\xe9\n", r"not in UTF-8 \(byte 20\)"),
        (b'path,label\na.png,"cat\n', "line 2: not a CSV"),
        (b"path,label\na.png,c\0t\n", "not"),
        (b"path,label\na.png,cat\nb.png,cat\n", r"one class only \(cat\)"),
    ],
)
def test_a_file_that_is_no_such_table(place: Path, content: bytes, message: str) -> None:
    path = place / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_csv_that_may_not_be_read(place: Path) -> None:
    path = place / "labels.csv"
    path.write_text("path,label\na.png,cat\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this process may read everything")
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        parse(path, "x")


def test_the_splits_of_a_csv_are_kept(
    tmp_path: Path, config: Callable[..., DataConfig], picture: Callable[..., bytes]
) -> None:
    root = tmp_path / "pictures"
    (root / "images").mkdir(parents=True)
    rows = ["file,class,split"]
    for number in range(120):
        split = (
            "test" if number % 6 == 0 else "Val" if number % 6 == 1 else ("train", "")[number % 2]
        )
        (root / f"images/{number}.png").write_bytes(picture(number))
        rows.append(f"images/{number}.png,{'cat' if number % 4 < 2 else 'dog'},{split}")
    (root / "labels.csv").write_text("\n".join(rows).replace("file,class", "path,label"))
    card = prepare(config(), root=tmp_path, downloads=tmp_path, out=tmp_path / "out")
    assert card.official_test
    assert card.official_validation
    assert (card.total("test"), card.total("validation"), card.total()) == (20, 20, 120)
    by_name = {key: n for n, key in enumerate(read(root).hashes)}
    assert {by_name[key] % 6 for key in load_split(tmp_path / "out", "test").hashes} == {0}
    assert {by_name[key] % 6 for key in load_split(tmp_path / "out", "validation").hashes} == {1}
    assert 0 < card.total("gate") < 20
