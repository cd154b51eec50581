"""`prong paper` as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_checkout import Checkout, make
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.core.errors import UserError
from pipelines.paper.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[3]


def test_without_a_name_the_experiments_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["paper"])
    assert done.exit_code == 0
    for name, experiment in EXPERIMENTS.items():
        assert name in done.output
        assert experiment.figure in done.output


def test_a_wrong_name_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["paper", "nothing"])
    assert isinstance(done.exception, UserError)
    assert "NAME 'nothing': no such experiment; allowed: fisher" in str(done.exception)
    assert not (ROOT / "paper/nothing-small").exists()


def _stages(said: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\S+)\s+(ran|cached|restored)\s+\d", said, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_run_does_nothing_and_one_more_seed_only_what_is_missing(tmp_path: Path) -> None:
    checkout: Checkout = make(tmp_path / "job")
    words = ("paper", "fisher", "--trials", "1", "--only", "prong", "--only", "sgd")
    first = checkout.prong(*words, "--seeds", "1")
    assert first.code == 0, first.out + first.err
    made = _stages(first.out)
    assert set(made.values()) == {"ran"}
    assert list(made) == [
        "data", "search@sgd", "search@bn", "search@prong",
        "train@sgd", "train@bn", "train@prong", "report",
    ]  # fmt: skip
    folder = checkout.root / "paper/fisher-small"
    page = folder / "report/report.html"
    before = page.read_bytes()
    assert "reached" in first.out

    again = checkout.prong(*words, "--seeds", "1")
    assert again.code == 0, again.out + again.err
    assert set(_stages(again.out).values()) == {"cached"}
    assert page.read_bytes() == before

    kept = set((folder / "kept").glob("trained-*"))
    more = checkout.prong(*words, "--seeds", "2")
    assert more.code == 0, more.out + more.err
    ran = {name for name, outcome in _stages(more.out).items() if outcome == "ran"}
    assert ran == {"train@sgd", "train@bn", "train@prong", "report"}
    assert len(set((folder / "kept").glob("trained-*")) - kept) == len(kept) == 3
    assert json.loads((folder / "report/report.json").read_text())["seeds"] == 2
    assert checkout.run("git", "status", "--porcelain").out == ""
    states = checkout.run_states()
    assert states
    assert set(states) == {"FINISHED"}
