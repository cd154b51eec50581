"""Stopping: every rank at the same call, whichever was told."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

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


def _rank(rank: int, size: int, folder: str) -> None:
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
    (Path(folder) / f"{rank}").write_text(f"{calls} {signum}")
    dist.destroy_process_group()


def test_three_ranks_stop_at_the_same_call(tmp_path: Path) -> None:
    mp.start_processes(_rank, (3, str(tmp_path)), nprocs=3)
    said = {(tmp_path / str(rank)).read_text() for rank in range(3)}
    assert len(said) == 1
    calls, signum = map(int, said.pop().split())
    assert 40 <= calls <= 61
    assert signum == signal.SIGINT


@pytest.mark.parametrize("number", [-1, 7])
def test_the_first_rank_is_heard_alone_too(number: int) -> None:
    assert TrainingRanks(0, 1, torch.device("cpu")).told(number) == number
