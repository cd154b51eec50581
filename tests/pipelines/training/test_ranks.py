"""1, 2 and 4 ranks come to one answer: the same bits within a run, rounding across their number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rank_processes import RankProcesses
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import agreement
from pipelines.core.config import Method, TrainConfig
from pipelines.training import checkpoint

Tensors = dict[str, Tensor]


def _losses(training: RankProcesses) -> list[float]:
    events = [json.loads(line) for line in training.paths.events.read_text().splitlines()]
    return [event["train_loss"] for event in events if event["kind"] == "step"]


def _network(training: RankProcesses) -> Tensors:
    return load_file(training.paths.network / "network.safetensors")


def _spread(one: Tensors, other: Tensors) -> float:
    """Return the largest difference, relative to the largest number of its tensor."""
    assert one.keys() == other.keys()
    return max(
        float((one[k].double() - other[k].double()).abs().max() / one[k].abs().max().clamp(min=1))
        for k in one
        if one[k].numel() and one[k].is_floating_point()
    )


def _same_bits(training: RankProcesses) -> None:
    """Each rank left a hash of weights, Φ and momentum; see `rank_processes`."""
    found = sorted(training.folder.glob("hash-*"))
    assert len(found) == training.ranks
    assert len({path.read_text() for path in found}) == 1


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("prong+", [2]),
        pytest.param("prong+", [4], marks=pytest.mark.slow),
        pytest.param("prong", [2, 4], marks=pytest.mark.slow),
    ],
)
def test_float64_agrees_over_50_steps(
    train: TrainConfig, prepared: Path, tmp_path: Path, method: Method, counts: list[int]
) -> None:
    """At the tuned rate; 400 digits, 10 epochs of 5 batches."""
    settings = replace(
        train, method=method, width=8, hidden=32, epochs=10, period=10,
        batch=48, samples=240,
    )  # fmt: skip
    options = ("float64", "every", "hash")
    alone = RankProcesses(prepared, tmp_path / "1", settings, options=options)
    alone.train()
    one, losses = _network(alone), _losses(alone)
    assert len(losses) == 50
    assert one["body.head.1.weight"].dtype == torch.float64
    for ranks in counts:
        several = alone.another(str(ranks), ranks=ranks)
        several.train()
        _same_bits(several)
        assert _spread(one, _network(several)) <= 1e-10
        assert max(abs(a - b) for a, b in zip(losses, _losses(several), strict=True)) <= 2e-6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["prong+", "prong"])
def test_float32_agrees_at_the_first_step_and_at_the_200th(method: str) -> None:
    """The paper's auto-encoder at its tuned rate: smooth, so that rounding stays rounding."""
    rate = 0.02 if method == "prong+" else 0.005
    setting = agreement.Setting("autoencoder", method, 128, 200, rate, 0.3, 20, False, None)
    one = agreement.training(setting, 0, 1)
    for ranks in (2, 4):
        several = agreement.together(setting, ranks)
        apart = [abs(a - b) / abs(b) for a, b in zip(several, one, strict=True)]
        print(f"{method}, {ranks} ranks: step 1 {apart[0]:.1e}, step 200 {apart[199]:.1e}")
        assert apart[0] <= 1e-5
        assert apart[199] <= 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_in_float32_stays_as_near_as_one_bit(
    train: TrainConfig, all_digits: Path, tmp_path: Path
) -> None:
    """At the tuned rate its rectifiers and maxima make more of any rounding, whoever rounds.

    So what several ranks do to it is held against one rank whose weights began one bit off.
    """
    settings = replace(train, epochs=4)
    training = RankProcesses(all_digits, tmp_path / "1", settings, options=("every", "hash"))
    training.train()
    one = _losses(training)
    assert len(one) >= 200

    def apart(other: RankProcesses) -> list[float]:
        other.train()
        return [abs(a - b) / b for a, b in zip(_losses(other), one, strict=True)]

    nudged = apart(training.another("nudged", options=("every", "nudge")))
    assert max(nudged[:200]) > 0
    for ranks in (2, 4):
        several = training.another(str(ranks), ranks=ranks)
        found = apart(several)
        _same_bits(several)
        print(f"{ranks} ranks: step 1 {found[0]:.1e}, largest {max(found[:200]):.1e}, "
              f"one bit {max(nudged[:200]):.1e}")  # fmt: skip
        assert found[0] <= 1e-5
        assert max(found[:200]) <= 10 * max(nudged[:200])


def test_parts_and_uneven_shares_give_the_same_batch(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    """31 images over two ranks, each in three parts: PRONG without batch normalisation."""
    settings = replace(small, method="prong", batch=31, lr=0.01)
    training = RankProcesses(prepared, tmp_path / "whole", settings, options=("float64", "hash"))
    training.train()
    parts = training.another("parts", config=replace(settings, accumulate=3), ranks=2)
    parts.train()
    _same_bits(parts)
    assert _spread(_network(training), _network(parts)) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["rank", "synchronised"])
def test_three_ranks_resume_to_the_bit(
    small: TrainConfig, prepared: Path, tmp_path: Path, batch_norm: str
) -> None:
    """Three: where the order of a sum shows."""
    settings = replace(small, batch_norm=batch_norm)
    training = RankProcesses(
        prepared, tmp_path / "whole", settings, ranks=3, checkpoint=4, options=("hash",)
    )
    weights = training.train()
    _same_bits(training)
    killed = training.another("killed", more={"PRONG_FAULT": "train.step@1#10"})
    codes = killed.run()
    assert codes[1] == -9
    assert all(codes)
    killed.more = {}
    assert killed.train() == weights


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        (2, 1),
        pytest.param(2, 3, marks=pytest.mark.slow),
    ],
)
def test_another_number_of_ranks_goes_on_within_rounding(
    small: TrainConfig, prepared: Path, tmp_path: Path, before: int, after: int
) -> None:
    """In mid-window: what the ranks had gathered is merged exactly."""
    training = RankProcesses(
        prepared, tmp_path / "whole", small, options=("float64", "hash"), checkpoint=13
    )
    training.train()
    killed = training.another(
        "killed", ranks=before, more={"PRONG_FAULT": f"train.step@{before - 1}#14"}
    )
    assert any(killed.run())
    saved = checkpoint.newest(killed.paths.checkpoints)
    assert saved is not None
    assert (saved.step, saved.ranks) == (13, before)
    killed.more, killed.ranks = {}, after
    killed.train()
    _same_bits(killed)
    assert _spread(_network(training), _network(killed)) <= 1e-10
