"""The memory of a scoring, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from small_models import classifier, write_images

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
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    model = classifier(tmp_path / "m.onnx")
    write_images(tmp_path / "in", 100)
    files = sorted((tmp_path / "in").iterdir())
    peaks = []
    for count in (2000, 20_000):
        with tarfile.open(tmp_path / f"{count}.tar", "w") as tar:
            for at in range(count):
                tar.add(files[at % 100], f"{at}-{'long name ' * 15}.png")
        paths = (model, tmp_path / f"{count}.tar", tmp_path / f"{count}.parquet")
        inputs, quarantined, _, peak = finish(start(4, 256, *paths))
        assert (inputs, quarantined) == (count, 0)
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 40, f"MiB: {peaks}"
