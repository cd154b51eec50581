"""Ranks under torchrun: whatever happens to one, none is left, and the first cause is in front."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gang import Gang
from small_checkout import make

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.training import checkpoint, heartbeat, supervision
from pipelines.training.heartbeat import RankStatus

RANKS = [pytest.param(1, marks=pytest.mark.slow), 2]


@pytest.fixture
def gang(small: TrainConfig, prepared: Path, tmp_path: Path) -> Gang:
    """One that would train for minutes."""
    return Gang(prepared, tmp_path / "gang", replace(small, epochs=5000), checkpoint=10**6)


@contextmanager
def _at_work(gang: Gang) -> Iterator[tuple[psutil.Popen, list[RankStatus]]]:
    """Yield the supervisor and its ranks' signs once every rank trains; leave no process."""
    process = gang.supervised()
    family: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        signs: list[RankStatus] = []
        while len(signs) < gang.ranks or any(s.step < 3 for s in signs):
            assert time.monotonic() < deadline, "no rank trains"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
            signs = heartbeat.signs(gang.paths.signs)
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, signs  # type: ignore[misc]
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left, [p.cmdline() for p in left]
    finally:
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def _said(process: psutil.Popen) -> str:
    return str(process.communicate(timeout=60)[0])


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "how",
    ["SIGTERM", *(pytest.param(how, marks=pytest.mark.slow)
                  for how in ("SIGINT", "SIGKILL", "torchrun SIGKILL"))],
)  # fmt: skip
def test_an_end_from_outside_ends_every_rank_with_a_checkpoint(
    gang: Gang, ranks: int, how: str
) -> None:
    gang = replace(gang, ranks=ranks)
    with _at_work(gang) as (process, signs):
        victim = process.pid
        if how.startswith("torchrun"):
            (torchrun,) = psutil.Process(process.pid).children()
            victim = torchrun.pid
        psutil.Process(victim).send_signal(getattr(signal, how.split()[-1]))
        start = time.monotonic()
        while any(sign.alive for sign in signs):
            time.sleep(0.02)
            assert time.monotonic() - start < 10, "a rank is left after 10 s"
    saved = checkpoint.newest(gang.paths.checkpoints)
    assert saved is not None
    assert saved.step >= 3
    assert {end["how"] for end in heartbeat.ends(gang.paths.signs).values()} == {"stopped"}
    assert {end["step"] for end in heartbeat.ends(gang.paths.signs).values()} == {saved.step}


def test_one_rank_that_is_told_to_end_ends_all_and_says_how_to_go_on(gang: Gang) -> None:
    gang = replace(gang, ranks=2)
    with _at_work(gang) as (process, signs):
        signs[1].send(signal.SIGTERM)
        said = _said(process)
        assert "Interrupted: the ranks were stopped at step" in said
        assert process.returncode == 1
    assert checkpoint.newest(gang.paths.checkpoints) is not None


@pytest.mark.parametrize("ranks", RANKS)
def test_a_killed_rank_ends_the_run_and_is_named(gang: Gang, ranks: int) -> None:
    with _at_work(replace(gang, ranks=ranks)) as (process, signs):
        signs[-1].send(signal.SIGKILL)
        said = _said(process)
        assert said.startswith(
            f"Failed: rank {ranks - 1} of {ranks} died without an error message, training"
        )
        assert "(signal SIGKILL)" in said
        assert "lower train.batch (now 32)" in said


@pytest.mark.parametrize("ranks", RANKS)
def test_a_failed_rank_is_in_front(gang: Gang, ranks: int) -> None:
    gang = replace(gang, ranks=ranks, more={"PRONG_FAULT": f"train.step@{ranks - 1}#20:raise"})
    process = gang.supervised()
    said = _said(process)
    assert process.returncode == 1
    first, *rest = said.splitlines()
    assert first.startswith(f"Failed: rank {ranks - 1} of {ranks} failed, training at step ")
    assert "RuntimeError: PRONG_FAULT" in first
    assert any("in _train" in line for line in rest)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_hung_rank_is_found_and_ended(gang: Gang, ranks: int) -> None:
    gang = replace(gang, ranks=ranks, timeout=4.0)
    with _at_work(gang) as (process, signs):
        signs[-1].send(signal.SIGSTOP)
        start = time.monotonic()
        said = _said(process)
        assert time.monotonic() - start < 25
        assert said.startswith(f"Failed: rank {ranks - 1} hung: no heartbeat for 4 s")
        assert "does not respond" in said


def test_the_hung_rank_is_the_one_furthest_behind(tmp_path: Path) -> None:
    """Also when all answer: one waits for data, the other for its peer."""
    (tmp_path / "ranks").mkdir()
    folder = Gang(tmp_path, tmp_path, None).paths  # type: ignore[arg-type]
    watch = supervision._Watch(folder, 0.0)
    gone = RankStatus(0, 1, "", "elsewhere", "training", 8, 1)
    said = watch._accuse([gone, replace(gone, rank=1, step=7), replace(gone, rank=2, step=8)])
    assert said.startswith(
        "rank 1 hung: no heartbeat for 0 s (supervision.timeout), training at step 7"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_machines_train_as_one(tmp_path: Path) -> None:
    """Two agents that meet on loopback, one rank each; the second by `prong join`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    checkout = make(tmp_path / "job")
    assert checkout.run("dvc", "repro", "prepare").code == 0
    where = f"supervision.rendezvous=127.0.0.1:{port}"
    params_file.edit(checkout.root / "params.yaml", [where, "supervision.nodes=2"])
    second = checkout.start("join")
    try:
        done = checkout.run("dvc", "repro", "train")
        assert done.code == 0, done.out + done.err
        out, err = second.communicate(timeout=60)
    finally:
        second.kill()
        second.communicate()
    assert second.returncode == 0, err
    assert "the training has ended" in out
    assert json.loads((checkout.root / "reports/train.json").read_text())["processes"] == 2
    params_file.edit(
        checkout.root / "params.yaml", ["supervision.nodes=1", "supervision.rendezvous=''"]
    )
    alone = checkout.prong("join")
    assert alone.code == 2
    assert "supervision.nodes = 1: there is nothing to join" in alone.err


@pytest.mark.slow
def test_ranks_are_started_again_and_go_on(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    """Each start makes seven more steps before the rank dies; a checkpoint comes every four."""
    whole = Gang(prepared, tmp_path / "whole", small)
    whole.train()
    gang = Gang(prepared, tmp_path / "restarted", small, checkpoint=4, restarts=8)
    gang.more = {"PRONG_FAULT": "train.step#7"}
    process = gang.supervised()
    said = _said(process)
    assert process.returncode == 0, said
    assert gang.weights() == whole.weights()
    assert gang.paths.events.read_text().count('"start"') >= 3


def test_a_lack_of_memory_says_what_to_lower(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    settings = replace(small, width=512, hidden=65536)
    gang = Gang(prepared, tmp_path / "large", settings, options=("little memory",))
    assert gang.run() == [2], gang.said
    (end,) = heartbeat.ends(gang.paths.signs).values()
    assert end["kind"] == "user"
    for word in ("out of memory on this machine, rank 0 of 1", "train.batch (now 32)",
                 "train.accumulate (now 1)", "train.hidden (65536)"):  # fmt: skip
        assert word in end["message"]


def test_a_full_disk_is_one_message_and_the_training_goes_on_later(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    gang = Gang(prepared, tmp_path / "full", small, checkpoint=4, options=("little disk",))
    assert gang.run() == [2]
    (end,) = heartbeat.ends(gang.paths.signs).values()
    assert end["kind"] == "user"
    assert "cannot write: the file would pass the size limit" in end["message"]
    assert list(gang.paths.checkpoints.iterdir())  # what it could not finish
    gang.options = ()
    gang.train()
    assert not list(gang.paths.checkpoints.glob("*.partial"))


def test_a_users_mistake_passes_through_as_one_message(gang: Gang) -> None:
    gang = replace(gang, config=replace(gang.config, method="sgd", lr=1e6, warmup=0))
    process = gang.supervised()
    said = _said(process)
    assert process.returncode == 2
    assert said.startswith("UserError: train.lr = 1e+06: the training loss is")
    assert "Traceback" not in said
