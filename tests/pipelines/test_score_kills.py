"""A scoring that is killed at any time goes on to the same file: real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import classifier, write_images

from pipelines.serving.batch.score import quarantine_of

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, resource, sys
from pathlib import Path
from pipelines.serving.batch import score as scoring
from pipelines.systems.onnx.runtime import OnnxModel
scoring._PART_BATCHES, scoring._LARGEST_BATCH = int(sys.argv[1]), int(sys.argv[2])
model, source, out = map(Path, sys.argv[3:])
loaded = OnnxModel.load(model, "cpu", threads=1)
print("ready", flush=True)
done = scoring.score(loaded, source, out, name="m", version=1, checkout=out.parent)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([done.inputs, done.quarantined, done.resumed, peak]), flush=True)
"""


def start(batches: int, size: int, *paths: Path) -> subprocess.Popen[str]:
    """Start a scoring with parts of so many batches of this size."""
    command = [sys.executable, "-c", PROGRAM, str(batches), str(size), *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: subprocess.Popen[str]) -> list[int]:
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    found: list[int] = json.loads(out)
    return found


@pytest.mark.slow
def test_after_kills_at_random_times_the_file_is_the_same(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx")
    write_images(tmp_path / "in", 1200)
    for at in range(0, 1200, 97):
        (tmp_path / f"in/{at:04d}.png").write_text("no image")
    whole, out = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    begun = time.monotonic()
    first = start(1, 32, model, tmp_path / "in", whole)
    assert finish(first)[:3] == [1200, 13, 0]
    seconds = time.monotonic() - begun
    generator = random.Random(0)
    for _ in range(4):
        process = start(1, 32, model, tmp_path / "in", out)
        time.sleep(generator.uniform(0, seconds / 4))
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
