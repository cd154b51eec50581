"""The report of an experiment, its figures, and the page of the documentation."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.paper import page, plan, records
from pipelines.paper.experiment import Curve, CurveMark, Point, Trained
from pipelines.paper.method_comparison import reached, share
from pipelines.paper.paper_report import HTML, JSON, write_report
from pipelines.paper.plan import AskedExperiment
from pipelines.paper.sheet import number, spread

ROOT = Path(__file__).parents[3]
ENDS = {"prong": 4.0, "prong-bn": 6.0, "sgd": 50.0, "bn-sgd": 8.0, "untuned": 9.0}


def _curve(end: float, seed: int, diverged: bool = False) -> Curve:
    marks = [
        CurveMark(at, 128 * at, 0.02 * at, 0.01 * at, dict.fromkeys(("train", "test"), error))
        for at in range(0, 101, 10)
        for error in [end + seed / 10 + (100 - end) * math.exp(-at / 10)]
    ]
    return Curve(
        tuple(marks[:3] if diverged else marks), refresh=0.1, reason="diverged: so" * diverged
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An auto-encoder experiment whose stages have left invented curves."""
    methods, left_out = ("prong", "sgd", "k-fac"), ("untuned",)
    asked = AskedExperiment("autoencoder", "small", 2, 2, 512, methods, left_out, str(ROOT), "")
    work = tmp_path / "work"
    _, scale = asked.experiment()
    plan.lay_out(work, asked)
    card = {"source": "digits", "size": 28, "train": 4000, "test": 1000, "files": {}}
    write_json(work / "data/card.json", card)
    for name in scale.studies:
        trials = [
            records.JudgedTrial({"lr": 0.1}, 1.0),
            records.JudgedTrial({"lr": 0.2}, None, "diverged"),
        ]
        gone = "not available: nothing" if name == "k-fac" else ""
        searched = records.StudyResult([] if gone else trials, gone)
        records.write_search(plan.search_of(work, name), searched)
    for key in scale.points:
        for seed in range(2):
            place = plan.record_of(work, key, seed) / "record.json"
            gone = "not available: nothing" if key == "k-fac" else ""
            curve = None if gone else _curve(ENDS[key], seed)
            values = {"normalised": "bn" in key, "lr": 0.1, "batch": 128}
            records.write_record(place, values, curve, {"processor": "<one> & only"}, gone)
    return work


def test_a_report_needs_nothing_else_and_says_what_is_missed(folder: Path) -> None:
    path = write_report(folder, plan.asked_in(folder))
    text = path.read_text()
    assert path == folder / "report" / HTML
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert text.count("<svg") == 4
    command = (
        "prong paper autoencoder --scale small --trials 2 --seeds 2 --examples 512 --only prong"
    )
    command += " --only sgd --only k-fac --without untuned"
    for said in ("missed", "reached", "PRONG⁺", "not available: nothing", "3.2", command):
        assert said in text, said
    assert "&lt;one&gt; &amp; only" in text
    found = read_json(folder / "report" / JSON)
    assert found["examples"] == 512
    assert found["missing"] == {"K-FAC": "not available: nothing"}
    targets = {target["what"]: target for target in found["targets"]}
    # PRONG is at 8 + 0.05 between updates 30 and 40 of 100: within a fifth it is not.
    first = targets["best PRONG against the best first-order baseline"]
    assert first["reached"] is False
    assert "after 0.4" in first["found"]
    assert targets["best PRONG against plain SGD, momentum"]["reached"] is True
    rank = next(table for table in found["tables"] if table["title"].startswith("Rank"))
    assert [row[0] for row in rank["rows"]][:2] == ["PRONG", "PRONG⁺"]
    assert rank["rows"][0][1] == "4.05 (4 to 4.1)"


def test_a_point_that_diverged_is_not_ranked_but_named(folder: Path) -> None:
    place = plan.record_of(folder, "sgd", 1) / "record.json"
    records.write_record(place, {"lr": 9.0}, _curve(3.0, 1, diverged=True), {})
    write_report(folder, plan.asked_in(folder))
    found = read_json(folder / "report" / JSON)
    assert found["missing"]["SGD, momentum"] == "diverged: so"
    rank = next(table for table in found["tables"] if table["title"].startswith("Rank"))
    assert ["SGD, momentum", "diverged: so", *["–"] * 6] in rank["rows"]


def test_the_page_is_made_of_the_reports_figures_alone(folder: Path, tmp_path: Path) -> None:
    write_report(folder, plan.asked_in(folder))
    page.collect([folder], tmp_path / "kept")
    text = page.text(tmp_path / "kept")
    assert "prong paper autoencoder --scale small --trials 2" in text
    assert "| PRONG | 4.05 (4 to 4.1) |" in text
    assert "**missed**" in text
    assert "No result is kept of the scale full." in text
    # The scale's own number of examples is kept beside it, and shown after it.
    kept = tmp_path / "kept/autoencoder-small-512.json"
    write_json(kept.with_name("autoencoder-small.json"), read_json(kept) | {"examples": 25_600})
    both = page.text(tmp_path / "kept")
    titles = ["### Small scale, 512 examples a training\n", "### Small scale\n"]
    assert [title for title in re.findall(r"### .*\n", both) if "Small" in title] == titles
    with pytest.raises(UserError, match="holds no report"):
        page.collect([tmp_path], tmp_path / "kept")


def test_the_page_in_the_documentation_is_that_of_the_kept_figures() -> None:
    assert (ROOT / "docs/paper.md").read_text() == page.text(ROOT / "docs/paper")


def test_a_damaged_record_says_which_file(folder: Path) -> None:
    place = plan.record_of(folder, "sgd", 0) / "record.json"
    place.write_text('{"marks": 3}')
    with pytest.raises(UserError, match=r"sgd/0/record\.json: not what the stage before writes"):
        write_report(folder, plan.asked_in(folder))


def _trained(*ends: float) -> Trained:
    curves = {seed: _curve(end, 0) for seed, end in enumerate(ends)}
    return Trained("key", Point("label", "prong"), {}, curves)


def test_who_is_first_is_measured_at_the_others_end() -> None:
    part, level = share(_trained(4.0, 4.0), _trained(8.0), "train", "update")
    assert level == pytest.approx(8.0, abs=0.01)
    assert part == pytest.approx(0.4)  # of 100 updates; 4 + 96 e⁻⁴ = 5.8 is the first below
    assert share(_trained(4.0, 9.0), _trained(8.0), "train", "update")[0] is None
    assert reached(_curve(4.0, 0), "train", 3.0) is None


def test_numbers_are_shown_with_three_digits_and_a_range() -> None:
    assert number(1234.6) == "1,235"
    assert number(0.012345) == "0.0123"
    assert number(146_647_147) == "1.5 × 10⁸"
    assert number(2e-6) == "2.0 × 10⁻⁶"
    assert number(0.0) == "0"
    assert number(None) == number(math.nan) == "–"
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert spread([1.5]) == "1.5"
