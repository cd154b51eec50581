from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json, write_text
from pipelines.core.paths import Layout
from pipelines.evaluation.evaluate import evaluate
from pipelines.gates.finding import Finding
from pipelines.pipeline.charts import Series, line_chart
from pipelines.pipeline.report import StageLine, Summary, write_report
from pipelines.verification.verify import verify

if TYPE_CHECKING:
    from networks import Exported, Trained

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]

SUMMARY = Summary(
    model="prong-digits",
    version=3,
    created=True,
    champion=2,
    promoted=False,
    reason="1.40 % on the gate split, champion v2 has <1.20> %",
    run_id="0123abcd",
    flow_run_id=None,
    tracking_uri="https://someone:secret@mlflow.example:5000/x",
    seconds=61.25,
    stages=(StageLine("prepare", "cached", 0.1), StageLine("train", "ran", 55.2)),
)
HISTORY = (
    "step,epoch,train_loss,train_error,validation_loss,validation_error,lr,samples_per_second"
    """
10,1,2.2,80.5,,,0.01,150
20,1,0.5,20.0,,,0.02,150
20,1,,,0.6,22.5,,
30,2,0.1,0.0,,,0.02,150
40,2,nan,0.0,0.2,3.5,0.002,
"""
)
CONDITIONING = """step,layer,condition_before,condition_after,whitening_error,seconds
0,features.0,1.0,1.0,2e-16,0.01
0,head.<1>,4822.5,1.5,1e-3,0.02
20,features.0,3.0,1.0,2e-16,0.01
20,head.<1>,inf,,nan,0.02
"""


@pytest.fixture(scope="module")
def finished(
    trained: Trained,
    exported: Exported,
    prepared: Path,
    small: Params,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkout in which the stages have run."""
    layout = Layout(tmp_path_factory.mktemp("checkout"))
    shutil.copytree(prepared, layout.prepared)
    out = layout.reports / "verification.json"
    evaluate(trained("prong"), prepared, small.evaluate, layout.reports)
    layout.onnx.parent.mkdir()
    shutil.copy(exported("prong"), layout.onnx)
    verify(trained("prong"), prepared, layout.onnx, small.verify, out)
    write_text(layout.reports / "history.csv", HISTORY)
    write_text(layout.reports / "conditioning.csv", CONDITIONING)
    return layout.root


@pytest.fixture
def layout(finished: Path, tmp_path: Path) -> Layout:
    shutil.copytree(finished, tmp_path / "checkout")
    return Layout(tmp_path / "checkout")


class Page(HTMLParser):
    """What a browser would find: elements that balance, their attributes, the text."""

    VOID = frozenset({"meta", "link", "img", "br", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def attributes(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(layout: Layout, summary: Summary = SUMMARY) -> Page:
    path = write_report(layout, summary)
    assert path == layout.reports / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_says_what_the_stages_found(layout: Layout) -> None:
    page = page_of(layout)
    evaluation = read_json(layout.reports / "evaluation.json")
    assert f"{evaluation['test_error']:.2f} %" in page.text
    assert f"{evaluation['errors']} of {evaluation['images']} examples wrong" in page.text
    assert "prong-digits v3" in page.text
    assert "champion is v2" in page.text
    assert SUMMARY.reason in page.text  # escaped, so the angle brackets are text
    assert "1 of 2 stages ran" in page.text
    hardest = read_json(layout.reports / "hardest.json")
    alternatives = [str(image["alt"]) for image in page.attributes("img")]
    assert len(alternatives) == len(hardest) + 1
    first = hardest[0]
    assert alternatives[0] == (
        f"Test image {first['index']}: {first['actual']}, answered as {first['predicted']}"
    )
    # Of the confusion matrix, each cell says what it counts.
    cells = [str(cell.get("title")) for cell in page.attributes("td") if cell.get("title")]
    assert len(cells) == 100
    wrong = [cell for cell in cells if cell[0] != cell[len("0 answered as ")]]
    assert sum(int(cell.split(": ")[1].split()[0]) for cell in wrong) == evaluation["errors"]


def test_text_from_outside_is_text_on_the_page(layout: Layout) -> None:
    nasty = "<script>x</script> [/srv] \x1b[2J \u202e \udcff"
    page = page_of(layout, replace(SUMMARY, reason=nasty, model=nasty))
    assert r"<script>x</script> [/srv] \x1b[2J \u202e \udcff" in page.text  # escaped, so it is text
    assert not {"\x1b", "\u202e"} & set((layout.reports / "report.html").read_text())
    assert "<svg" in (layout.reports / "report.html").read_text()  # the page's own markup stays


def test_the_page_needs_nothing_else(layout: Layout) -> None:
    page = page_of(layout)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "video")
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
        assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
    text = (layout.reports / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(http" not in text


def test_credentials_stay_out_of_the_page(layout: Layout) -> None:
    write_report(layout, SUMMARY)
    text = (layout.reports / "report.html").read_text(encoding="utf-8")
    assert "secret" not in text
    assert "https://mlflow.example:5000/x" in text


def test_equal_runs_give_equal_pages(layout: Layout) -> None:
    first = write_report(layout, SUMMARY).read_bytes()
    assert write_report(layout, SUMMARY).read_bytes() == first


def test_conditioning_shows_each_layer_and_accepts_values_that_are_not_finite(
    layout: Layout,
) -> None:
    page = page_of(layout)
    labels = [str(svg["aria-label"]) for svg in page.attributes("svg")]
    assert "Condition number of head.<1>: after from 1.5 to 1.5; before from 4.82e+03" in " ".join(
        labels
    )
    assert sum("Condition number" in label for label in labels) == 2
    assert "head.<1>" in page.text


@pytest.mark.parametrize("left", ["absent", "header", "empty"])
def test_a_method_without_whitening_says_so(layout: Layout, left: str) -> None:
    path = layout.reports / "conditioning.csv"
    match left:
        case "absent":
            path.unlink()
        case "header":
            path.write_text(CONDITIONING.splitlines()[0] + "\n")
        case "empty":
            path.write_text("")
    page = page_of(layout)
    assert "whitens no layer" in page.text
    assert not [svg for svg in page.attributes("svg") if "Condition" in str(svg["aria-label"])]


def rename(layout: Layout, classes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    """Give the run other classes, as its stages would have left them."""
    card = read_json(layout.prepared / "card.json")
    counts = {split: dict.fromkeys(classes, 0) for split in card["counts"]}
    form = card["form"] | {"classes": list(classes)}
    write_json(layout.prepared / "card.json", card | {"form": form, "counts": counts})
    write_json(layout.reports / "hardest.json", [])
    with (layout.reports / "predictions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("actual", "predicted"), *pairs])


def test_of_many_classes_the_worst_confusions_are_listed(layout: Layout) -> None:
    classes = [f"<kind> {at}" for at in range(1000)]
    pairs = [(name, classes[0]) for name in classes] + [(classes[7], classes[8])] * 5
    rename(layout, classes, pairs)
    page = page_of(layout)
    assert not [table for table in page.attributes("table") if table.get("class") == "matrix"]
    assert "1000 classes: too many for a matrix. 1000 pairs were confused." in page.text
    assert "<kind> 7" in page.text
    assert len(page.elements) < 2000


def test_nothing_confused_is_said(layout: Layout) -> None:
    rename(layout, ["a", "b"], [("a", "a"), ("b", "b")])
    page = page_of(layout, replace(SUMMARY, champion=3, promoted=True))
    assert "Every test image was answered rightly." in page.text
    assert "None were asked for" in page.text


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("evaluation.json", "evaluate"),
        ("predictions.csv", "evaluate"),
        ("hardest.json", "evaluate"),
        ("verification.json", "verify"),
        ("history.csv", "train"),
    ],
)
def test_an_absent_file_is_named_with_its_stage(layout: Layout, name: str, stage: str) -> None:
    (layout.reports / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: absent; the stage {stage} makes it"):
        write_report(layout, SUMMARY)
    assert not (layout.reports / "report.html").exists()


def test_hardest_images_of_other_data_are_refused(layout: Layout) -> None:
    path = layout.reports / "hardest.json"
    rows = read_json(path)
    rows[0]["hash"] = "f" * 64
    write_json(path, rows)
    with pytest.raises(UserError, match="not in the test split; rerun evaluate"):
        write_report(layout, SUMMARY)


def test_a_long_training_is_drawn_with_few_points() -> None:
    points = [(float(x), 1 / (x + 1)) for x in range(100_000)]
    chart = line_chart("Loss", [Series("training", points)], scale="log")
    assert len(chart) < 40_000


@pytest.mark.parametrize(
    "points", [[], [(1.0, float("nan"))], [(1.0, 0.0), (2.0, -1.0)], [(5.0, 3.0)]]
)
def test_a_chart_of_little_is_still_a_chart(points: list[tuple[float, float]]) -> None:
    for scale in ("linear", "log", "error"):
        chart = line_chart("Loss", [Series("$x$ & <y>", points)], scale=scale)  # type: ignore[arg-type]
        Page(chart)
        assert "#0000" not in chart  # every colour follows the page


def test_every_gate_is_shown_with_its_verdict_and_reason(layout: Layout) -> None:
    assert "Gates" not in page_of(layout, SUMMARY).text
    findings = (
        Finding("bytes", "pass", None, None, "equal"),
        Finding("champion", "fail", 0.0312, 0.02, "12 of 519 wrong, <the> champion 3"),
        Finding("latency", "not run", None, None, "not loaded"),
    )
    page = page_of(layout, replace(SUMMARY, findings=findings))
    assert "prong gates VERSION" in page.text
    for said in ("not run", "0.0312", "12 of 519 wrong, <the> champion 3"):
        assert said in page.text
