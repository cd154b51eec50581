"""The loop of docs/training.md, as its reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEFORE = """
import os, torch
torch.manual_seed(0)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
images, labels = torch.randn(320, 12), torch.randint(0, 3, (320,))
share = [(x.chunk(size)[rank], y.chunk(size)[rank])
         for x, y in zip(images.split(16), labels.split(16))]
model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(),
                            torch.nn.Linear(8, 3))
"""
AFTER = """
import hashlib, sys
assert natural.report.step == 20 and all(r.updated for r in natural.report.layers.values())
digest = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    digest.update(name.encode() + value.numpy().tobytes())
open(f"{sys.argv[1]}/{rank}", "w").write(digest.hexdigest())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_loop_for_several_ranks_ends_with_the_same_bits_on_both(tmp_path: Path) -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S)
    program = tmp_path / "loop.py"
    program.write_text(BEFORE + loop + AFTER)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--log-dir", str(tmp_path / "logs"), "--rdzv-backend", "c10d",
         "--rdzv-endpoint", "127.0.0.1:0", str(program), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
