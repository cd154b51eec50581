"""`prong score` and `prong triton`, as they are typed, of what was released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from small_checkout import SOURCE, Checkout
from starts import Starts
from stored_versions import MODEL

from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.registry.version_files import champion
from pipelines.release.promote import rollback


@pytest.fixture
def released(starts: Starts, layout: Layout) -> Layout:
    """A checkout with two versions that were champion, and digits as files."""
    starts.released(layout, 0.0, 1.0)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    (layout.root / "in").mkdir()
    for at, digit in enumerate(load_split(layout.prepared, "test").inputs[:5]):
        Image.fromarray(digit[0]).save(layout.root / f"in/{at}.png")
    (layout.root / "in/bad.png").write_text("no image")
    return layout


def test_the_champion_answers_for_a_folder(released: Layout) -> None:
    checkout = Checkout(released.root)
    done = checkout.forked("score", "in", "--out", "a.parquet", "--provider", "cpu")
    assert done.code == 0, done.err
    assert f"a.parquet  5 of 6 inputs answered by {MODEL} v2 on cpu" in done.out
    assert "1 inputs have no answer; why: a.quarantine.csv" in done.err
    table = pd.read_parquet(released.root / "a.parquet")
    live = champion(released, MODEL)
    assert set(table["version"]) == {2}
    assert set(table["sha256"]) == {live.statement.sha256}
    assert sorted(table["path"]) == [f"{at}.png" for at in range(5)]

    again = checkout.forked("score", "in", "--out", "a.parquet", "--provider", "cpu", "--json")
    assert again.code == 0, again.err
    said = json.loads(again.out)
    assert (said["inputs"], said["resumed"], said["quarantined"]) == (6, 6, 1)

    rollback(released, MODEL, None, "test")  # another version answers: the file is another
    refused = checkout.forked("score", "in", "--out", "a.parquet", "--provider", "cpu")
    assert refused.code == 2
    assert "--overwrite replaces it" in refused.err
    for wrong in (
        ("score", "in", "--out", "b.parquet", "--provider", "gpu"),
        ("score", "in", "--out", "b.parquet", "--model", "typo"),
        ("score", "gone", "--out", "b.parquet"),
    ):
        refused = checkout.forked(*wrong)
        assert refused.code == 2, refused.out
        assert "Traceback" not in refused.err


def test_a_model_repository_follows_the_champion(released: Layout) -> None:
    checkout = Checkout(released.root)
    place = released.root / "triton" / MODEL
    for number in (2, 1):
        done = checkout.forked("triton", "triton", "--max-batch", "16", "--batch-delay", "0.5")
        assert done.code == 0, done.err
        assert done.out.strip() == f"triton/{MODEL}  {MODEL} v{number}"
        text = (place / "config.pbtxt").read_text()
        assert f"versions: [ {number} ]" in text
        assert "max_batch_size: 16" in text
        assert "max_queue_delay_microseconds: 500" in text
        live = champion(released, MODEL)
        assert sha256_file(place / f"{number}/model.onnx") == live.statement.sha256
        if number == 2:
            rollback(released, MODEL, None, "test")
    # A file that is not what was released goes nowhere.
    live.path.write_bytes(b"other")
    where: Path = place / "1/model.onnx"
    before = where.read_bytes()
    shutil.rmtree(released.state / "mlruns", ignore_errors=True)
    refused = checkout.forked("triton", "triton", "--tensorrt-cache", "/x")
    assert refused.code == 2
    assert where.read_bytes() == before
