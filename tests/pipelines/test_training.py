"""Training as a process: ranks, kills, and what a wrong setting says."""

from __future__ import annotations

import csv
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from small_checkout import Checkout, make

from pipelines.core import params_file
from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError
from pipelines.data.prepare import prepare
from pipelines.training import launch, methods, network
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    params = params_file.load(ROOT / "params.yaml")
    data = replace(params.data, limit=400)
    prepare(data, root=ROOT, downloads=folder / "downloads", out=folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def small() -> TrainConfig:
    train = params_file.load(ROOT / "params.yaml").train
    return replace(train, epochs=2, batch=32, width=4, hidden=16, warmup=2, period=5, samples=200)


def _loop(settings: TrainConfig, prepared: Path) -> Loop:
    return Loop(settings, prepared, TrainingRanks(0, 1, torch.device("cpu")), None)


@pytest.mark.parametrize("method", methods.LEARNING_RATE)
def test_every_method_trains_with_its_own_default_rate(
    small: TrainConfig, prepared: Path, method: Method
) -> None:
    loop = _loop(replace(small, method=method), prepared)
    assert loop.schedule.lr == methods.LEARNING_RATE[method]
    best = loop.run()
    assert np.isfinite(best["validation_loss"])
    assert loop.step == loop.steps
    assert (loop.refreshes > 1) == method.startswith("prong")


def test_a_training_is_a_function_of_its_seed(small: TrainConfig, prepared: Path) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        loop = _loop(replace(small, seed=seed), prepared)
        loop.run()
        return loop.network.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_saved_network_is_the_trained_one(
    small: TrainConfig, prepared: Path, tmp_path: Path
) -> None:
    loop = _loop(small, prepared)
    loop.run()
    network.save(tmp_path, loop.spec, loop.network.state_dict())
    spec, loaded = network.load(tmp_path)
    assert spec == loop.spec
    images = loop.images[:8]
    with torch.no_grad():
        assert torch.equal(loaded(images), loop.network.eval()(images))


def test_a_damaged_network_is_refused(small: TrainConfig, prepared: Path, tmp_path: Path) -> None:
    loop = _loop(small, prepared)
    network.save(tmp_path, loop.spec, loop.network.state_dict())
    path = tmp_path / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"network\.safetensors"):
        network.load(tmp_path)


def test_a_diverging_training_says_what_to_lower(small: TrainConfig, prepared: Path) -> None:
    loop = _loop(replace(small, method="sgd", lr=1e6, warmup=0, epochs=20), prepared)
    with pytest.raises(UserError, match=r"train\.lr = 1e\+06"):
        loop.run()


def test_cuda_asked_for_and_absent_is_refused(small: TrainConfig) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UserError, match=r"train\.device = 'cuda'.*allowed: auto, cpu"):
        launch.device(replace(small, device="cuda"))
    assert launch.device(replace(small, device="auto")) == "cpu"


def test_a_batch_too_small_for_the_ranks_is_refused(small: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"train\.batch = 4.*3 processes × train\.accumulate = 1"):
        launch.check_batch(replace(small, batch=4), 3)
    with pytest.raises(UserError, match=r"train\.accumulate = 2"):
        launch.check_batch(replace(small, batch=6, accumulate=2), 2)
    launch.check_batch(replace(small, batch=8, accumulate=2), 2)
    assert launch.processes(replace(small, processes="auto"), "cpu") == 1


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    return make(tmp_path_factory.mktemp("ranks") / "job")


def test_two_ranks_train_the_network_of_one(checkout: Checkout) -> None:
    """PRONG without batch normalisation, whose statistics are each rank's own."""

    def trained(processes: int) -> dict[str, torch.Tensor]:
        settings = ["train.method=prong", f"train.processes={processes}", "train.period=4"]
        params_file.edit(checkout.root / "params.yaml", settings)
        done = checkout.run("dvc", "repro", "train")
        assert done.code == 0, done.out + done.err
        return load_file(checkout.root / "models/trained/network.safetensors")

    one, two = trained(1), trained(2)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=2e-3, atol=2e-4, msg=name)
    with (checkout.root / "reports/conditioning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} >= {"0", "4", "8"}
    assert all(float(row["condition_after"]) < 1e6 for row in rows)


@pytest.mark.parametrize(
    ("how", "after"),
    [
        # While the rank still loads.
        pytest.param(signal.SIGKILL, 0.0, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 5.0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 5.0, marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_its_run_and_the_next_run_goes_on(
    checkout: Checkout, how: signal.Signals, after: float
) -> None:
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=5000", "train.processes=1"])
    process = checkout.start("run")
    family: list[psutil.Process] = []
    try:
        family = _with_ranks(process.pid, after)
        process.send_signal(how)
        assert process.wait(timeout=60) != 0
        _, left = psutil.wait_procs(family, timeout=60)
        assert not left, f"left at work: {[' '.join(_command(p)) for p in left]}"
    finally:
        for one in [*family, process]:
            with suppress(psutil.Error):
                one.kill()
        process.communicate()
    params_file.edit(checkout.root / "params.yaml", ["train.epochs=1"])
    done = checkout.prong("run")
    assert done.code == 0, done.out + done.err
    assert "prepare   cached" in done.out
    states = set(checkout.run_states())
    assert "RUNNING" not in states
    assert "KILLED" in states or "FAILED" in states


def _with_ranks(pid: int, after: float) -> list[psutil.Process]:
    """Return all descendants of a run, `after` seconds since its first rank was started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        family = psutil.Process(pid).children(recursive=True)
        ranks = [p for p in family if "pipelines.training.rank" in " ".join(_command(p))]
        if len(ranks) >= 2:  # torchrun and its rank
            time.sleep(after)
            return psutil.Process(pid).children(recursive=True)
        time.sleep(0.05)
    raise AssertionError("no rank came up")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
