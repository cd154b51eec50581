"""The experiments run, and what they take away is what they say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import agreement, inputs, simpler, staleness, tune
from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.data.prepared import Split, load_split

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]
TINY = ["train.width=2", "train.hidden=8", "train.samples=64", "train.batch=64", "train.warmup=2"]


@pytest.fixture
def checkout(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "data").mkdir()
    os.symlink(prepared, tmp_path / "data/prepared")
    params_file.edit(tmp_path / "params.yaml", TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _rows(text: str, head: str) -> list[list[str]]:
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.lstrip().startswith(head))
    return [line.split() for line in lines[at + 1 :] if line]


def test_tuning_lists_every_combination_best_first(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = ["--set", "train.lr=0.05,1e-7", "--set", "train.damping=0.1,0.3"]
    assert tune.main([*knobs, "--epochs", "1", "--seeds", "1"]) == 0
    rows = _rows(capsys.readouterr().out, "error %")
    assert {tuple(row[4:]) for row in rows} == {
        (f"lr={lr}", f"damping={damping}") for lr in ("0.05", "1e-7") for damping in ("0.1", "0.3")
    }
    errors = [float(row[0]) for row in rows]
    assert errors == sorted(errors)
    assert [row[4] for row in rows[:2]] == ["lr=0.05"] * 2  # 1e-7 learns nothing


@pytest.mark.parametrize("knob", ["data.seed=1,2", "train.lr=", "train.lr=-1", "train.typo=1"])
def test_a_wrong_knob_is_refused(checkout: Path, knob: str) -> None:
    with pytest.raises(UserError, match=knob.partition("=")[0]):
        tune.main(["--set", knob])


def test_taking_the_input_away_is_worse(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inputs.main(["--epochs", "3", "--seeds", "1"]) == 0
    rows = {" ".join(row[:-4]): row for row in _rows(capsys.readouterr().out, "input")}
    assert set(rows) == set(inputs.changes(1))
    assert float(rows["no centre"][-2]) > float(rows["all of it"][-2])


def test_fewer_images_and_drift_are_listed(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert staleness.main(["--epochs", "1", "--seeds", "1"]) == 0
    text = capsys.readouterr().out
    counts = [int(row[-2]) for row in _rows(text, "trained on")[:4]]
    assert counts == sorted(set(counts))
    assert text.count("\n") == 1 + 4 + 1 + 1 + len(staleness.DRIFTS)


def test_what_is_taken_away_is_gone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    assert len(np.unique(inputs.black_and_white(images))) == 2
    grey = inputs.grey(images)
    assert np.array_equal(grey[:, 0], grey[:, 2])
    coarse = inputs.coarse(images)
    assert np.array_equal(coarse[..., ::2, ::2], coarse[..., 1::2, 1::2])
    assert not inputs.without_centre(images)[..., 2:6, 2:6].any()
    assert not inputs.without_border(images)[..., 0, :].any()
    assert np.array_equal(staleness.moved(3)(images)[..., 3:], images[..., :-3])


def test_the_linear_model_is_ridge_regression(prepared: Path) -> None:
    """Against the primal solution, with an intercept by centring, on other axes."""
    train, test = load_split(prepared, "train"), load_split(prepared, "test")
    rows = train.inputs.reshape(len(train.targets), -1) / 255
    mean = rows.mean(axis=0)
    centred = rows - mean
    codes = -np.ones((len(rows), 10))
    codes[np.arange(len(rows)), train.targets] = 1
    ridge = 3.0 * (centred**2).sum() / len(rows)
    gram = centred.T @ centred + ridge * np.eye(rows.shape[1])
    answers = (test.inputs.reshape(len(test.targets), -1) / 255 - mean) @ np.linalg.solve(
        gram, centred.T @ codes
    )
    expected = float((answers.argmax(axis=1) != test.targets).mean())
    assert simpler.linear(train, test) == expected
    assert expected < 0.4
    # It generalises from what it saw: shuffled labels teach it nothing.
    draw = np.random.default_rng(0).permutation(train.targets)
    assert simpler.linear(Split(train.inputs, draw, train.hashes), test) > 0.7


def test_simpler_models_are_listed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpler.main(["--epochs", "1", "--seeds", "1"]) == 0
    rows = _rows(capsys.readouterr().out, "model")
    assert [" ".join(row[:-2]) for row in rows] == [
        "linear",
        "network, sgd",
        "network, bn",
        "network, adam",
        "network, prong+",
    ]


@pytest.mark.slow
def test_several_ranks_are_as_near_as_rounding(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", "tiny", "--methods", "prong", "--ranks", "2", "--steps", "12"]
    assert agreement.main([*words, "--batch", "15", "--period", "4", "--float64"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2 ranks")]
    narrow, wide = ([float(cell) for cell in line.split("|")[2:-1]] for line in lines)
    assert 0 < max(narrow) < 1e-4
    assert max(wide) < 1e-12
