from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.fingerprints import params_hash
from pipelines.tasks.interval import images_needed

ROOT = Path(__file__).parents[3]
PARAMS = params_file.load(ROOT / "params.yaml")


def test_no_limit_is_a_parameter_of_a_stage_or_of_the_bytes() -> None:
    for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values():
        assert not [key for key in stage["params"] if key.startswith("gates")]
    other = replace(PARAMS, gates=replace(PARAMS.gates, margin=0.5, clean=True))
    assert params_hash(other) == params_hash(PARAMS)
    assert other.hash("gates") != PARAMS.hash("gates")


def test_every_limit_is_explained() -> None:
    text = (ROOT / "docs/gates.md").read_text()
    for field in fields(PARAMS.gates):
        assert f"`{field.name}`" in text or f"`gates.{field.name}`" in text, field.name


def test_every_gate_has_its_row() -> None:
    from pipelines.gates.judging import GATES

    text = (ROOT / "docs/gates.md").read_text()
    for name in GATES:
        assert f"\n| `{name}` |" in text, name


def test_identical_answers_of_375_images_meet_the_default_margin() -> None:
    assert images_needed(PARAMS.gates.margin) <= 375


@pytest.mark.parametrize(
    "assignment",
    [
        *("margin=-0.1", "margin=1.5", "latency=0.9", "size=.inf", "parity=0", "megabytes=0"),
        *("clean=1", "seconds=0", "memory=100", "processors=0"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path: Path, assignment: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(UserError, match=f"gates.{assignment.partition('=')[0]}"):
        params_file.edit(path, [f"gates.{assignment}"])
