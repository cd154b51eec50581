"""The table of untuned PRONG beside tuned baselines: what is run, kept, chosen and printed."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import (
    peers,
    untuned,
    untuned_data,
    untuned_plan,
    untuned_table,
    untuned_times,
    untuned_trials,
)
from benchmarks.untuned_data import Examples
from benchmarks.untuned_table import Entry
from benchmarks.untuned_times import Clock, Times
from benchmarks.untuned_trials import Job, Trial
from benchmarks.untuned_workloads import WORKLOADS, Workload


def _network(normalised):
    norm = [nn.BatchNorm1d(8)] * normalised
    return nn.Sequential(nn.Linear(6, 8), *norm, nn.ReLU(), nn.Linear(8, 3))


def _examples(_folder):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 6, generator=generator)
    labels = (images @ torch.randn(6, 3, generator=generator)).argmax(1)
    return Examples(images[:150], labels[:150], images[150:], labels[150:])


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Two tiny workloads, on synthetic data."""
    threads = torch.get_num_threads()
    workload = partial(Workload, "synthetic", batch=16, updates=20)
    for name in list(WORKLOADS):
        monkeypatch.delitem(WORKLOADS, name)
    tiny = workload(partial(_network, False), twin="tiny-bn", peers=("muon", "newton-muon"))
    monkeypatch.setitem(WORKLOADS, "tiny", tiny)
    bn = workload(partial(_network, True), normalised=True, costly=("muon-on-v",))
    monkeypatch.setitem(WORKLOADS, "tiny-bn", bn)
    monkeypatch.setitem(untuned_data.READERS, "synthetic", _examples)
    monkeypatch.setattr(untuned_times, "TURNS", 1)
    untuned_trials.examples_of.cache_clear()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(monkeypatch):
    """The jobs that are trained."""
    jobs = []
    train = untuned_trials.train

    def counting(job, examples):
        jobs.append(job)
        return train(job, examples)

    monkeypatch.setattr(untuned_trials, "train", counting)
    return jobs


def _run(tmp_path, *words):
    common = ["--out", str(tmp_path / "out"), "--jobs", "1", "--threads", "1"]
    return untuned.main([str(tmp_path), *common, "--updates-share", "0.5", *words])


def _rows(text, head="| workload | method"):
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(head))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _trial(losses, rate=0.1, seed=0, error=1.0):
    job = Job("tiny", "sgd", rate, seed, 40)
    assert len(job.marks) == untuned_trials.MARKS
    return Trial(job, (*losses, *[losses[-1]] * (20 - len(losses))), error, 1.0)


@pytest.mark.slow
def test_the_table_has_all_rows(tmp_path, trained, capsys):
    assert _run(tmp_path, "--seeds", "2", "--every-peer") == 0
    text = capsys.readouterr().out
    rows = _rows(text)
    assert [tuple(row[:2]) for row in rows] == [
        *(("tiny", name) for name in ("PRONG", "SGD", "BN + SGD", "RMSprop", "AdamW")),
        *(("tiny", name) for name in ("Muon", "Newton-Muon")),
        *(("tiny-bn", name) for name in ("PRONG⁺", "SGD", "RMSprop", "AdamW", "Muon on V")),
    ]
    assert all(math.isfinite(float(row[7])) for row in rows)
    assert all(float(row[5]) > 0 for row in rows)
    assert [row[0] for row in _rows(text, "| workload | best")] == ["tiny", "tiny-bn"]
    assert "python -m benchmarks.untuned" in text
    assert "PRONG's rate is 0.03; 50% of the updates" in text
    # BN + SGD is SGD on the other workload: it is not trained twice.
    assert max(Counter(trained).values()) == 1
    prong = [job for job in trained if job.method == "prong"]
    assert {(job.rate, job.seed) for job in prong} == {(0.03, 0), (0.03, 1)}
    assert len(prong) == 4
    assert len(trained) == 4 + 5 * 9  # 4 rates and one seed more for 9 tuned pairs


def test_a_second_call_does_only_what_is_missing(tmp_path, trained, capsys):
    words = ["--only", "tiny-bn", "--methods", "prong", "sgd"]
    assert _run(tmp_path, *words, "--seeds", "1") == 0
    first = capsys.readouterr().out
    assert len(trained) == 5
    trained.clear()
    assert _run(tmp_path, *words, "--seeds", "1") == 0
    assert not trained
    assert _rows(capsys.readouterr().out) == _rows(first)
    assert _run(tmp_path, *words, "--seeds", "2") == 0
    assert [(job.method, job.seed) for job in trained] == [("prong", 1), ("sgd", 1)]
    files = sorted((tmp_path / "out").iterdir())
    assert not [path for path in files if path.suffix != ".json"]
    trained.clear()
    next(path for path in files if "--sgd--" in path.name).unlink()
    assert _run(tmp_path, *words, "--seeds", "2") == 0
    assert len(trained) == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"job": {}, "losses": [], "error": 1, "seconds": 1}',
        None,
        "NaN in it",
        "a number too few",
    ],
)
def test_a_broken_file_is_said_and_done_again(tmp_path, trained, capsys, content):
    words = ["--only", "tiny-bn", "--methods", "sgd", "--seeds", "1"]
    assert _run(tmp_path, *words) == 0
    whole = _rows(capsys.readouterr().out)
    path = next(path for path in (tmp_path / "out").iterdir() if "--0.1--" in path.name)
    kept = json.loads(path.read_text())
    if content == "NaN in it":
        content = json.dumps({**kept, "error": math.nan})
    elif content == "a number too few":
        content = json.dumps({**kept, "losses": kept["losses"][1:]})
    path.write_text(json.dumps({**kept, "error": True}) if content is None else content)
    trained.clear()
    assert _run(tmp_path, *words) == 0
    captured = capsys.readouterr()
    assert f"{path}: not a result" in captured.err
    assert [job.rate for job in trained] == [0.1]
    assert _rows(captured.out)[0][:7] == whole[0][:7]
    assert json.loads(path.read_text())["losses"] == kept["losses"]


def test_broken_times_are_taken_again(tmp_path, capsys):
    words = ["--only", "tiny-bn", "--methods", "sgd", "--seeds", "1"]
    assert _run(tmp_path, *words) == 0
    path = next((tmp_path / "out").glob("times--*"))
    path.write_text('{"turns": {"sgd": []}, "start": {"sgd": 0}}')
    assert _run(tmp_path, *words) == 0
    assert "not a result" in capsys.readouterr().err
    clock = Clock("tiny-bn", ("sgd",), 1, 0.5)
    assert untuned_times.load(path, clock).ratio("sgd") == 1


def test_the_table_of_what_there_is_runs_nothing(tmp_path, trained, capsys):
    words = ["--only", "tiny-bn", "--methods", "prong", "sgd"]
    assert _run(tmp_path, *words, "--table") == 0
    notes = [row[2] for row in _rows(capsys.readouterr().out)]
    assert notes == ["0 of 1 rates tried", "0 of 4 rates tried"]
    assert not trained


@pytest.mark.slow  # a new process imports torch
def test_worker_processes_keep_the_same_trials(tmp_path):
    """The real worker: spawned, so on a workload that needs no folder and no injection."""
    job = Job("mlp", "sgd", 0.1, 0, 2)
    done = []
    work = untuned_plan.Work([], 1, 1.0, tmp_path)
    work.paths[job] = tmp_path / "mlp.json"
    for trial, took in untuned.results([job], work, tmp_path, 2, done.append):
        assert trial.job == job
        assert took > 0
    assert done == [job]
    kept = json.loads(work.paths[job].read_text())
    assert kept["losses"] == list(trial.losses)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nonsense"], "--only: invalid choice: 'nonsense' (choose from"),
        (["--methods", "magic"], "--methods: invalid choice: 'magic' (choose from"),
        (["--seeds", "0"], "--seeds = 0: must be at least 1"),
        (["--updates-share", "2"], "--updates-share = 2.0: must be above 0 and at most 1"),
    ],
)
def test_what_is_not_allowed_ends_with_status_2(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        untuned.main([str(tmp_path), *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_ends_with_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(untuned.FOLDERS, "synthetic", "nowhere")
    with pytest.raises(SystemExit) as caught:
        untuned.main([str(tmp_path), "--only", "tiny"])
    assert caught.value.code == 2
    assert f"FOLDER = '{tmp_path}': there is no folder nowhere in it" in capsys.readouterr().err


def test_a_training_that_diverges_is_kept_as_infinite_and_not_chosen(tmp_path, monkeypatch, capsys):
    rates = (0.1, 1e30, 0.01, 1e35)
    monkeypatch.setitem(untuned_plan.RATES, "sgd", {"mean": rates})
    assert _run(tmp_path, "--only", "tiny", "--methods", "sgd", "--seeds", "1") == 0
    (row,) = _rows(capsys.readouterr().out)
    assert row[2] == "0.1"
    path = next(path for path in (tmp_path / "out").iterdir() if "--1e+35--" in path.name)
    kept = json.loads(path.read_text())
    assert kept["losses"][-1] is None
    assert kept["error"] is None


def test_a_method_without_a_finite_rate_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(untuned_plan.RATES, "sgd", {"mean": (1e30, 1e35)})
    assert _run(tmp_path, "--only", "tiny", "--methods", "sgd", "prong", "--seeds", "1") == 0
    rows = _rows(capsys.readouterr().out)
    assert rows[1][2] == "no rate stays finite"
    assert rows[0][6] != "–"


def test_the_best_rate_is_the_one_that_ends_lowest():
    trials = [
        _trial([1.0, 0.1, 0.5], rate=0.3),
        _trial([2.0, 2.0, 0.4], rate=0.1),
        _trial([0.2, math.inf], rate=1.0),
    ]
    assert untuned_table.best(trials).job.rate == 0.1
    assert untuned_table.best(trials[2:]) is None


def test_shares_of_the_updates_are_those_of_the_first_mark():
    """40 updates, marks at 2, 4, …, 40."""
    trial = _trial([5.0, 4.0, 4.5, 2.0, 1.0])
    assert trial.job.marks[:3] == (2, 4, 6)
    assert untuned_table.share_to(trial, 5.0) == 2 / 40
    assert untuned_table.share_to(trial, 4.2) == 4 / 40
    assert untuned_table.share_to(trial, 3.0) == 8 / 40
    assert untuned_table.share_to(trial, 0.5) == math.inf
    assert untuned_table.loss_at(trial, 0.05) == 5.0
    assert untuned_table.loss_at(trial, 0.06) == 4.0
    assert untuned_table.loss_at(trial, 1.0) == 1.0
    assert Job("tiny", "sgd", 0.1, 0, 3).marks == (1, 2, 3)


def test_times_and_intervals_are_what_their_numbers_say():
    prong = Entry(
        "tiny",
        "prong",
        0.03,
        False,
        tuple(
            _trial([5.0, 1.0], seed=seed, error=error) for seed, error in enumerate((1.0, 2.0, 3.0))
        ),
    )
    other = Entry(
        "tiny",
        "sgd",
        0.1,
        False,
        tuple(
            _trial([5.0, 4.0], seed=seed, error=error) for seed, error in enumerate((2.0, 2.0, 5.0))
        ),
    )
    times = Times({"prong": (3.0, 3.0, 6.0), "sgd": (1.0, 1.0, 2.0)}, {"prong": 8.0, "sgd": 0.0})
    assert times.ratio("prong") == 3
    assert times.step("prong") == 3
    share = untuned_table.updates_to(prong, other.final)
    assert share == 4 / 40
    # 8 s to start and 4 steps of 3 s, beside 40 steps of 1 s.
    assert untuned_table.time_to(prong, other, share, times) == 20 / 40
    # Gaps −1, 0, −2: mean −1, deviation 1, t = 4.303 for two degrees of freedom.
    half = 4.302653 / math.sqrt(3)
    assert untuned_table.difference(prong, other) == f"-1 ({-1 - half:+.3g} to {-1 + half:+.3g})"
    (line,) = untuned_table.summary([prong, other], {"tiny": times}).splitlines()[2:]
    assert "| SGD, 0.1 | 4 | 1 | 4 of 40 (10%) | 20 of 40 (50%) |" in line


def test_a_hash_of_code_does_not_see_comments(tmp_path):
    paths = [tmp_path / "one" / "a.py", tmp_path / "two" / "a.py", tmp_path / "three" / "a.py"]
    texts = ['def f():\n    """Say."""\n    return 1\n', "def f():  # why\n    return 1\n"]
    for path, text in zip(paths, [*texts, "def f():\n    return 2\n"], strict=True):
        path.parent.mkdir()
        path.write_text(text)
    first, second, third = (untuned_trials.fingerprint((path,)) for path in paths)
    assert first == second != third


def test_every_real_workload_makes_a_loss(monkeypatch):
    monkeypatch.undo()
    shapes = {"pixels": (784,), "mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (64,)}
    assert len(WORKLOADS) == 14
    for workload in WORKLOADS.values():
        outputs = workload.build()(torch.randn(2, *shapes[workload.data]))
        assert outputs.shape == (2, 784 if workload.data == "pixels" else 10)
        assert set(workload.methods) <= set(peers.METHODS)
        assert not workload.twin or WORKLOADS[workload.twin].normalised
        for grids in untuned_plan.RATES.values():
            assert len(set(grids[workload.rates])) == 4
