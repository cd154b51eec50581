"""The table of step times comes out, and counts bytes as they are."""

from __future__ import annotations

import json

import torch

from benchmarks import step_time, workloads


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
    assert list(raw) == list(step_time.METHODS)
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
