"""A scoring in a process of its own, which can be killed and whose memory can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    """Wait for its end; return inputs, those quarantined, those of an earlier run, peak in KiB."""
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    found: list[int] = json.loads(out)
    return found
