"""The files that show DVC a change of code, in a checkout of the package and in a project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipelines.core.files import read_json, write_text
from pipelines.core.fingerprints import STAGE_SOURCES, code_hash, package_hash, source_root
from pipelines.systems.dvc.stage_code import FOLDER, note_code

ROOT = Path(__file__).parents[2]


def noted(root: Path) -> dict[str, object]:
    note_code(root)
    return {path.stem: read_json(path) for path in (root / FOLDER).glob("*.json")}


def test_in_a_checkout_a_change_concerns_the_stages_that_are_made_of_it(tmp_path: Path) -> None:
    for name in ("prong/__init__.py", "pipelines/__init__.py", "pipelines/evaluation/evaluate.py"):
        write_text(tmp_path / name, "x = 1\n")
    assert source_root(tmp_path) == tmp_path
    before = noted(tmp_path)
    assert list(STAGE_SOURCES) == sorted(before, key=list(STAGE_SOURCES).index)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / FOLDER).iterdir()}
    for name, changed in (
        ("pipelines/evaluation/evaluate.py", {"evaluate"}),
        ("pipelines/cli/app.py", set()),
        ("prong/new.py", {"train", "evaluate", "export", "verify"}),
    ):
        write_text(tmp_path / name, "x = 2\n")
        after = noted(tmp_path)
        assert {stage for stage in after if after[stage] != before[stage]} == changed, name
        before = after
    left = (tmp_path / FOLDER / "prepare.json").stat()
    assert left.st_mtime_ns == times["prepare.json"]  # DVC need not read it again


def test_in_a_project_the_installed_sources_count_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()  # a folder of that name is no checkout
    assert source_root(tmp_path) == ROOT
    assert package_hash(tmp_path) == package_hash(ROOT)
    assert code_hash(tmp_path) == code_hash(ROOT)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    done = subprocess.run(  # as a person does it before `dvc repro`
        [sys.executable, "-m", "pipelines.systems.dvc.stage_code"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = {path.stem: read_json(path) for path in (tmp_path / FOLDER).glob("*.json")}
    assert found == noted(tmp_path)
    assert set(found) == set(STAGE_SOURCES)
