"""Stopping: every rank at the same call, whichever was told."""

from __future__ import annotations

import signal
from pathlib import Path

import fork_server
import pytest
import torch
import torch.distributed as dist

from pipelines.training.parallel import TrainingRanks
from pipelines.training.stopping import Stop, Stopped


def test_alone_a_note_is_an_agreement() -> None:
    stop = Stop(TrainingRanks(0, 1, torch.device("cpu")))
    assert [stop.agreed() for _ in range(100)] == [0] * 100
    stop.note(signal.SIGTERM)
    assert signal.SIGTERM in [stop.agreed() for _ in range(25)]
    assert stop.agreed(now=True) == signal.SIGTERM


def test_a_stop_passes_through_handlers_of_errors() -> None:
    assert not issubclass(Stopped, Exception)
    assert str(Stopped(15)) == "stopped by SIGTERM"


def _rank(rank: int, size: int, folder: str) -> list[int]:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    stop = Stop(TrainingRanks(rank, size, torch.device("cpu")))
    calls = 0
    while True:
        calls += 1
        if rank == 1 and calls == 40:
            stop.note(signal.SIGINT)
        if signum := stop.agreed(now=calls % 17 == 0):
            break
    dist.destroy_process_group()
    return [calls, signum]


def test_three_ranks_stop_at_the_same_call(tmp_path: Path) -> None:
    started = [
        fork_server.start(_rank, rank, 3, str(tmp_path), leaves=tmp_path / "output", cwd=tmp_path)
        for rank in range(3)
    ]
    ended = [process.wait() for process in started]
    assert [one.code for one in ended] == [0, 0, 0], ended
    calls, signum = ended[0].said
    assert [one.said for one in ended] == [[calls, signum]] * 3
    assert 40 <= calls <= 61
    assert signum == signal.SIGINT


@pytest.mark.parametrize("number", [-1, 7])
def test_the_first_rank_is_heard_alone_too(number: int) -> None:
    assert TrainingRanks(0, 1, torch.device("cpu")).told(number) == number
