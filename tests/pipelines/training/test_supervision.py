"""Ranks under torchrun: whatever happens to one, all end, and the first cause is named first."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fork_server import Forked
from rank_processes import RankProcesses, free_port
from small_checkout import make

from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.waiting import wait_until
from pipelines.training import checkpoint, heartbeat, supervision
from pipelines.training.heartbeat import RankStatus

RANKS = [pytest.param(1, marks=pytest.mark.slow), 2]


@pytest.fixture
def training(small: TrainConfig, prepared: Path, tmp_path: Path) -> RankProcesses:
    """One that would train for minutes."""
    return RankProcesses(
        prepared, tmp_path / "watched", replace(small, epochs=5000), checkpoint=10**6
    )


@contextmanager
def _at_work(training: RankProcesses) -> Iterator[tuple[Forked, list[RankStatus]]]:
    """Yield the supervisor and its ranks' signs once every rank trains; leave no process."""
    process = training.supervised()
    family: list[psutil.Process] = []

    def signs() -> list[RankStatus]:
        return heartbeat.signs(training.paths.signs)

    def all_train() -> bool:
        assert process.running(), process.output()
        found = signs()
        return len(found) == training.ranks and all(sign.step >= 3 for sign in found)

    try:
        assert wait_until(all_train, 120), "no rank trains"
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, signs()
        _, left = psutil.wait_procs(family, timeout=20)
        assert not left, [p.cmdline() for p in left]
    finally:
        for one in family:
            with suppress(psutil.Error):
                one.kill()
        process.kill()


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(
    "how",
    ["SIGTERM", *(pytest.param(how, marks=pytest.mark.slow)
                  for how in ("SIGINT", "SIGKILL", "torchrun SIGKILL"))],
)  # fmt: skip
def test_an_end_from_outside_ends_every_rank_with_a_checkpoint(
    training: RankProcesses, ranks: int, how: str
) -> None:
    training = replace(training, ranks=ranks)
    with _at_work(training) as (process, signs):
        victim = process.pid
        if how.startswith("torchrun"):
            (torchrun,) = psutil.Process(process.pid).children()
            victim = torchrun.pid
        psutil.Process(victim).send_signal(getattr(signal, how.split()[-1]))
        start = time.monotonic()
        while any(sign.alive for sign in signs):
            time.sleep(0.02)
            assert time.monotonic() - start < 10, "a rank is left after 10 s"
    saved = checkpoint.newest(training.paths.checkpoints)
    assert saved is not None
    assert saved.step >= 3
    assert {end["how"] for end in heartbeat.ends(training.paths.signs).values()} == {"stopped"}
    assert {end["step"] for end in heartbeat.ends(training.paths.signs).values()} == {saved.step}


@pytest.mark.slow
def test_one_rank_that_is_told_to_end_ends_all_and_says_how_to_go_on(
    training: RankProcesses,
) -> None:
    training = replace(training, ranks=2)
    with _at_work(training) as (process, signs):
        signs[1].send(signal.SIGTERM)
        ended = process.wait(60)
        assert "Interrupted: the ranks were stopped at step" in ended.output
        assert ended.code == 1
    assert checkpoint.newest(training.paths.checkpoints) is not None


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
def test_a_killed_rank_ends_the_run_and_is_named(training: RankProcesses, ranks: int) -> None:
    with _at_work(replace(training, ranks=ranks)) as (process, signs):
        signs[-1].send(signal.SIGKILL)
        said = process.wait(60).output
        assert said.startswith(
            f"Failed: rank {ranks - 1} of {ranks} died without an error message, training"
        )
        assert "(signal SIGKILL)" in said
        assert "lower train.batch (now 32)" in said


@pytest.mark.parametrize("ranks", RANKS)
def test_a_failed_rank_is_named_first(training: RankProcesses, ranks: int) -> None:
    training = replace(
        training, ranks=ranks, more={"PRONG_FAULT": f"train.step@{ranks - 1}#20:raise"}
    )
    ended = training.supervised().wait(60)
    said = ended.output
    assert ended.code == 1
    first, *rest = said.splitlines()
    assert first.startswith(f"Failed: rank {ranks - 1} of {ranks} failed, training at step ")
    assert "RuntimeError: PRONG_FAULT" in first
    assert any("in _train" in line for line in rest)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_hung_rank_is_found_and_ended(training: RankProcesses, ranks: int) -> None:
    training = replace(training, ranks=ranks, timeout=15.0)  # they start in less
    with _at_work(training) as (process, signs):
        signs[-1].send(signal.SIGSTOP)
        start = time.monotonic()
        said = process.wait(60).output
        assert time.monotonic() - start < 36
        assert said.startswith(f"Failed: rank {ranks - 1} hung: no heartbeat for 15 s")
        assert "does not respond" in said


def test_the_rank_furthest_behind_is_named_as_hung(tmp_path: Path) -> None:
    """Also when all answer: one waits for data, the other for its peer."""
    (tmp_path / "ranks").mkdir()
    folder = RankProcesses(tmp_path, tmp_path, None).paths  # type: ignore[arg-type]
    watch = supervision.Watch(folder, 0.0)
    gone = RankStatus(0, 1, "", "elsewhere", "training", 8, 1)
    said = watch._accuse([gone, replace(gone, rank=1, step=7), replace(gone, rank=2, step=8)])
    assert said.startswith(
        "rank 1 hung: no heartbeat for 0 s (supervision.timeout), training at step 7"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_machines_train_as_one(tmp_path: Path) -> None:
    """Two agents that meet on loopback, one rank each; the second by `prong join`."""
    checkout = make(tmp_path / "job")
    assert checkout.repro("prepare").code == 0
    where = f"supervision.rendezvous=127.0.0.1:{free_port()}"
    params_file.edit(checkout.root / "params.yaml", [where, "supervision.nodes=2"])
    second = checkout.start("join")
    try:
        done = checkout.repro("train")
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
    whole = RankProcesses(prepared, tmp_path / "whole", small)
    whole.train()
    training = RankProcesses(prepared, tmp_path / "restarted", small, checkpoint=4, restarts=8)
    training.more = {"PRONG_FAULT": "train.step#7"}
    ended = training.supervised().wait(60)
    said = ended.output
    assert ended.code == 0, said
    assert training.weights() == whole.weights()
    assert training.paths.events.read_text().count('"start"') >= 3


def test_a_lack_of_memory_says_what_to_lower(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    settings = replace(small, width=512, hidden=65536)
    training = RankProcesses(prepared, tmp_path / "large", settings, options=("little memory",))
    assert training.run() == [2], training.output
    (end,) = heartbeat.ends(training.paths.signs).values()
    assert end["kind"] == "user"
    for word in ("out of memory on this machine, rank 0 of 1", "train.batch (now 32)",
                 "train.accumulate (now 1)", "train.hidden (65536)"):  # fmt: skip
        assert word in end["message"]


def test_a_full_disk_is_one_message_and_the_training_goes_on_later(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    training = RankProcesses(
        prepared, tmp_path / "full", small, checkpoint=4, options=("little disk",)
    )
    assert training.run() == [2]
    (end,) = heartbeat.ends(training.paths.signs).values()
    assert end["kind"] == "user"
    assert "cannot write: the file would pass the size limit" in end["message"]
    assert list(training.paths.checkpoints.iterdir())  # what it could not finish
    training.options = ()
    training.train()
    assert not list(training.paths.checkpoints.glob("*.partial"))


@pytest.mark.slow
def test_a_users_mistake_passes_through_as_one_message(training: RankProcesses) -> None:
    training = replace(training, config=replace(training.config, method="sgd", lr=1e6, warmup=0))
    ended = training.supervised().wait(60)
    said = ended.output
    assert ended.code == 2
    assert said.startswith("UserError: train.lr = 1e+06: the training loss is")
    assert "Traceback" not in said
