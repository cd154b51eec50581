"""A scoring that is killed at any time goes on to the same file: real processes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from scoring_process import finish, start
from small_models import classifier, write_images

from pipelines.serving.batch.score import quarantine_of


@pytest.mark.slow
def test_after_kills_at_random_times_the_file_is_the_same(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx")
    write_images(tmp_path / "in", 1200)
    for at in range(0, 1200, 97):
        (tmp_path / f"in/{at:04d}.png").write_text("no image")
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    first = start(1, 32, model, tmp_path / "in", whole)
    begun = time.monotonic()  # without the start: the kills fall into the scoring
    assert finish(first)[:3] == [1200, 13, 0]
    seconds = time.monotonic() - begun
    generator = random.Random(0)
    for _ in range(4):
        process = start(1, 32, model, tmp_path / "in", out)
        time.sleep(generator.uniform(0.3, 0.6) * seconds)
        process.kill()
        process.communicate()
        if out.exists():
            break
    found = finish(start(1, 32, model, tmp_path / "in", out))
    assert found[:2] == [1200, 13]
    assert found[2] > 0
    assert out.read_bytes() == whole.read_bytes()
    assert quarantine_of(out).read_bytes() == quarantine_of(whole).read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    lists = {"a.parquet", "a.quarantine.csv", "whole.parquet", "whole.quarantine.csv"}
    assert left == {*lists, "in", "m.onnx"}
