"""The table of step times comes out, and counts bytes as they are."""

from __future__ import annotations

import json

import torch

from benchmarks import scaling, step_time, workloads


def test_every_method_has_a_row_and_bytes_are_counted(capsys, tmp_path):
    threads = torch.get_num_threads()
    out = tmp_path / "raw.json"
    options = [
        "--model",
        "tiny",
        "--batch",
        "8",
        "--period",
        "3",
        "--rounds",
        "2",
        "--trained",
        "3",
    ]
    assert step_time.main([*options, "--threads", str(threads), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    raw = json.loads(out.read_text())
    assert list(raw) == step_time.INSTALLED
    for name, seconds in raw.items():
        assert f"| {name} |" in text
        assert len(seconds["steps"]) == 6
        assert min(seconds["steps"]) > 0
    assert not list(tmp_path.glob("*.partial"))


def test_live_bytes_of_sgd_are_parameters_gradients_and_momentum():
    model = torch.nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = step_time.Run(model, [optimizer], None)
    work = workloads.Workload(torch.randn(9, 5), None, 3, torch.randn(1, 5))
    run.turn(work, torch.Generator(), 2, counted=False)
    assert run.live == 3 * 4 * (5 * 4 + 4)
    assert run.steps == []


def test_the_floor_counts_products():
    """Two layers of 4 × 4, 8 rows, T = 2, two batches of statistics: by hand."""
    setting = scaling.Setting(width=4, batch=8, period=2, samples=100, depth=2)
    sgd = 2 * 8 * 16 + 3 * 8 * 16
    statistics = 2 * (16 * 16 / 4)
    whole = 2 * (4 * 16 + 64 / 2)
    assert setting.floor([None, None]) == 1 + (statistics + whole) / sgd
    leading = 2 * 8 * 4 * 1 + 2 * 16 * 1 / 2 + 2 * 8 * 4 * 3 + 2 * 16 * 3 / 2
    assert setting.floor([1, 3]) == 1 + (statistics + leading) / sgd


def test_scaling_prints_and_plots(capsys, tmp_path):
    picture = tmp_path / "scaling.png"
    options = ["--sweeps", "depth", "--most", "2", "--width", "32", "--rounds", "1"]
    threads = str(torch.get_num_threads())
    assert scaling.main([*options, "--threads", threads, "--out", str(picture)]) == 0
    assert "\n| 2 | " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["scaling.png"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
