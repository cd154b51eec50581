"""The commands as they are typed, each a process of its own, on the default store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from test_release import MODEL

from pipelines.core.paths import Layout
from pipelines.release import promote as promotion
from pipelines.release import register as release

SOURCE = Path(__file__).parents[3]
Make = Callable[..., FinishedCheckout]


def prong(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Type `prong …` in a checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *arguments],
        cwd=layout.root,
        env={**kept, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


@pytest.fixture
def released(checkout: Make, layout: Layout) -> Layout:
    """A checkout with two versions that were champion, and a third that is much worse."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    for noise in (0.0, 1.0, 200.0):  # the last is refused
        made = checkout(noise=noise)
        done = release.register(made.layout, made.params, None)
        promotion.promote(made.layout, made.params, done.version)
    return layout


@pytest.mark.slow
def test_back_and_forth_by_commands(released: Layout) -> None:
    refused = prong(released, "promote")
    assert refused.returncode == 1, refused.stderr
    assert "v3 was not promoted: blocked by champion" in refused.stderr
    assert "the champion is still v2" in refused.stderr
    assert "Traceback" not in refused.stderr

    back = prong(released, "rollback", "--reason", "answers were odd")
    assert back.returncode == 0, back.stderr
    assert back.stdout.strip() == f"{MODEL} v1 is champion again (before: v2)"
    assert back.stderr == ""

    said = prong(released, "history", "--json")
    assert said.returncode == 0, said.stderr
    entries = json.loads(said.stdout)["entries"]
    assert [entry["version"] for entry in entries] == [1, 2, 1]
    assert entries[-1]["reason"] == "answers were odd"


@pytest.mark.slow
def test_every_command_of_the_life_cycle(released: Layout) -> None:
    assert "is champion already" in prong(released, "promote", "2").stdout
    table = prong(released, "history")
    assert table.returncode == 0, table.stderr
    assert "promoted" in table.stdout
    compared = prong(released, "compare", "champion", "3", "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["second"] == 3
    subprocess.run(["git", "init", "-q"], cwd=released.root, check=True)
    (released.root / ".dvc").mkdir()
    (released.root / ".dvc/config").touch()
    dry = prong(released, "gc", "--dry-run", "--keep", "0")
    assert (dry.returncode, dry.stdout) == (0, "nothing to remove\n"), dry.stderr
    for wrong in (("rollback", "--to", "9"), ("promote", "best"), ("compare", "1", "9")):
        done = prong(released, *wrong)
        assert done.returncode == 2, done.stdout
        assert wrong[-1] in done.stderr
        assert "Traceback" not in done.stderr


def test_a_rollback_loads_neither_torch_nor_what_trains(released: Layout) -> None:
    program = (
        "import sys; sys.argv = ['prong', 'rollback']\n"
        "from pipelines.cli.app import app\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'prefect', 'dvc', 'onnxscript', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=released.root,
        env={**kept, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
        timeout=250,
    )
    assert "is champion again" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
