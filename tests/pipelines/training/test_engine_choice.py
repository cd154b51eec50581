"""What is refused before a job is submitted, and what a job is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.core import params_file
from pipelines.core.config import ClusterConfig, Params, TrainConfig
from pipelines.core.errors import Failed, UserError
from pipelines.core.fingerprints import params_hash
from pipelines.systems.engines import slurm, submission
from pipelines.training import engine_choice

SHIPPED = Path(__file__).parents[3] / "params.yaml"
SLURM = replace(ClusterConfig(), engine="slurm", shared="/")


@pytest.fixture
def params() -> Params:
    return params_file.load(SHIPPED)


def test_a_place_that_the_nodes_do_not_see_is_said_before(tmp_path: Path) -> None:
    project, shared = tmp_path / "project", tmp_path / "shared"
    project.mkdir()
    shared.mkdir()
    cluster = replace(SLURM, shared=str(shared))
    with pytest.raises(UserError, match=r"cluster\.shared = .*: the project, .*, is not in it"):
        engine_choice.check_seen(cluster, {"the project": project})
    (shared / "link").symlink_to(project)
    with pytest.raises(UserError, match=r"cluster\.shared = .*: data, .*, is not in it"):
        engine_choice.check_seen(cluster, {"data": shared})
    for wrong in ("shared", str(tmp_path / "absent")):
        with pytest.raises(UserError, match=r"cluster\.shared = .*: allowed: the absolute path"):
            engine_choice.check_seen(replace(cluster, shared=wrong), {})
    engine_choice.check_seen(replace(cluster, shared=str(tmp_path)), {"the project": project})


@pytest.mark.parametrize("key", ["device", "processes"])
def test_what_is_resolved_on_this_machine_is_refused(params: Params, key: str) -> None:
    train: TrainConfig = replace(params.train, device="cpu", processes=1)
    engine_choice.check_elsewhere(train, SLURM)
    with pytest.raises(UserError, match=rf"train\.{key} = 'auto': .*'slurm'.*allowed"):
        engine_choice.check_elsewhere(replace(train, **{key: "auto"}), SLURM)  # type: ignore[arg-type]


def test_the_engine_changes_no_hash_of_a_training(params: Params) -> None:
    other = replace(params, cluster=SLURM)
    assert params_hash(other) == params_hash(params)
    assert other.hash() == params.hash()
    assert "cluster" not in params.recorded()


@pytest.mark.parametrize(
    ("engine", "missing"), [("slurm", "shared"), ("kubernetes", "image"), ("kubernetes", "claim")]
)
def test_an_engine_asks_for_what_it_needs(engine: str, missing: str) -> None:
    given = {"shared": "/s", "image": "i", "claim": "c", missing: ""}
    with pytest.raises(ValueError, match=rf"cluster\.{missing} = ''.*allowed: "):
        ClusterConfig(engine=engine, **given)  # type: ignore[arg-type]


def test_secrets_are_not_handed_to_an_engine() -> None:
    given = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "PRONG_KEEPER": "1:2", "NCCL_DEBUG": "1"}
    assert submission.passed_on(given) == {"PATH": "/bin", "NCCL_DEBUG": "1"}


def test_without_slurms_programs_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"cluster\.engine = 'slurm': there is no program 'squeue'"):
        slurm.Slurm(SLURM).find("x")


def test_what_squeue_does_not_print_is_refused() -> None:
    assert slurm._QueueLine.parse("7|PENDING|main|name||a|b").reason == "a|b"
    for text in ("", "7|PENDING", "x|PENDING|main|name||r"):
        with pytest.raises(Failed, match="which is no job"):
            slurm._QueueLine.parse(text)
