"""The benchmark for CUDA devices refuses to run without one, and its tables come out."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import gpu


def test_without_a_device_it_says_so_once_and_prints_no_table(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--device = 'cuda': there is no CUDA device here; allowed: cpu")
    assert err.count("\n") == 1


# What the compiler does with an autograd function of anyone's.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "settings",
    [("float32", "bf16"), pytest.param(gpu.SETTINGS, marks=pytest.mark.slow)],
    ids=["eager", "all"],
)
def test_every_row_is_in_the_table(settings, capsys):
    options = ["--device", "cpu", "--model", "tiny", "--steps", "3", "--rounds", "2"]
    options += ["--settings", *settings]
    torch._dynamo.reset()
    assert gpu.main([*options, "--backend", "aot_eager", "--batch", "8", "--calls", "3"]) == 0
    text = capsys.readouterr().out
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [tuple(row[:3]) for row in cells if row[0].removeprefix("| ") in gpu.SETTINGS]
    expected = [
        (f"| {setting}", name, beside)
        for setting in settings
        for name in ("sgd", *gpu.ROWS)
        for beside in (["–"] if name == "sgd" else ["off", "on"])
        if setting != "compiled" or beside != "on"
    ]
    assert rows == expected
    # SGD beside itself; it is never reparametrised, all others are.
    assert all((row[4] == "1.00 (1.00–1.00)") == (row[1] == "sgd") for row in cells if len(row) > 6)
    assert {row[6] == "–" for row in cells if row[1] == "sgd"} == {True}
    assert [row[0] for row in cells if len(row) == 4] == [
        "| images in a call",
        "| 1",
        "| 7",
        "| 256",
    ]


def test_the_time_of_a_setting_can_be_limited(capsys):
    options = ["--device", "cpu", "--model", "tiny", "--steps", "2", "--batch", "8", "--calls", "0"]
    options += ["--settings", "float32", "bf16", "--rounds", "9", "--seconds", "1e-9"]
    assert gpu.main(options) == 0
    out, err = capsys.readouterr()
    assert all(f"| {setting} | prong | on |" in out for setting in ("float32", "bf16"))
    turns = [f"tiny, {s}: turn {t} of 11" for s in ("float32", "bf16") for t in (1, 2, 3)]
    assert err.splitlines() == turns  # two that warm up, one that counts


def test_a_turn_counts_steps_and_the_refreshes_in_them():
    asked = gpu._parser().parse_args(["--device", "cpu", "--model", "tiny", "--steps", "4"])
    asked.model, asked.period = "tiny", 4
    row = gpu._row("float32", "prong fold", True, asked)
    batches = [(torch.rand(8, 12), None) for _ in range(8)]
    row.turn(batches, counted=False)
    assert not row.steps
    assert not row.refreshes
    start = time.perf_counter()
    row.turn(batches, counted=True)
    whole = 1e3 * (time.perf_counter() - start)
    assert row.run.natural.steps == 16
    assert len(row.steps) == 8
    # Two layers take turns, once each in a turn of T = 4 steps.
    assert len(row.run.natural.units) == 2
    assert len(row.refreshes) == 4
    # All of a reparametrisation lies in its own span, and none of it in the optimizer's step.
    assert row.refreshes[-1] >= 1e3 * row.run.natural.report.seconds
    assert 0 < sum(row.refreshes) <= 8 * row.shares[0] < sum(row.steps) <= whole
    assert row.turns == [pytest.approx(sum(row.steps) / 8)]


def test_a_clock_tells_what_lies_between_its_marks():
    clock = gpu.Clock(torch.device("cpu"))
    for pause in (0.02, 0.0, 0.0):
        clock.mark()
        time.sleep(pause)
    first, second = clock.take()
    assert first >= 20
    assert second > 0
    assert clock.take() == []
