"""The report of an experiment: one HTML file that needs nothing else, and its figures as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.core.files import atomic_directory, sha256_json, write_json, write_text
from pipelines.paper import paper_images as images
from pipelines.paper import plan, records
from pipelines.paper.experiment import Experiment, Results, Scale, Trained
from pipelines.paper.plan import AskedExperiment
from pipelines.paper.sheet import Sheet
from pipelines.pipeline.html_pages import templates

JSON, HTML = "report.json", "report.html"


def results_of(folder: Path, scale: Scale) -> tuple[Results, list[dict[str, str]]]:
    """Return what the stages left, and what the trainings ran on, each machine once.

    Raises:
        UserError: If a file is absent or not what a stage leaves.
    """
    trained, machines = {}, []
    for key, point in scale.points.items():
        curves, files, values, missing = {}, {}, dict(point.values), ""
        for seed in range(scale.seeds):
            place = plan.record_of(folder, key, seed)
            record = records.read_record(place / "record.json")
            curve = record.curve
            values, missing = record.values, missing or record.missing or curve.reason
            if record.environment not in machines and not record.missing:
                machines.append(record.environment)
            if curve.marks:
                curves[seed], files[seed] = curve, place
        trained[key] = Trained(key, point, values, curves, missing, files)
    trials = {
        study: len(records.read_search(plan.search_of(folder, study)).trials)
        for study in scale.studies
    }
    return Results(scale, trained, trials, images.card_of(folder / "data")), machines


def write_report(folder: Path, asked: AskedExperiment) -> Path:
    """Write `report` in the folder of an experiment and return the page.

    Args:
        folder: All its stages but the last have run.
        asked: What the folder was made for.

    Raises:
        UserError: If a file is absent or not what a stage leaves.
    """
    experiment, scale = asked.experiment()
    results, machines = results_of(folder, scale)
    sheet = experiment.report(results)
    content = _content(asked, experiment, scale, results, sheet, machines)
    with atomic_directory(folder / "report") as made:
        found = {p.name: p for one in results.trained.values() for f in one.files.values()
                 for p in sorted(f.glob("*.png"))}  # fmt: skip
        for picture in sheet.pictures:
            shutil.copy(found[picture.file], made / picture.file)
        write_json(made / JSON, content)
        write_text(made / HTML, _page(content, sheet, made))
    return folder / "report" / HTML


def command_of(asked: AskedExperiment) -> str:
    """Return the command that makes a report."""
    words = ["prong", "paper", asked.name, "--scale", asked.scale]
    numbers = {"--trials": asked.trials, "--seeds": asked.seeds, "--examples": asked.examples}
    for option, value in numbers.items():
        words += [option, str(value)] if value else []
    for method in asked.only:
        words += ["--only", method]
    for row in asked.without:
        words += ["--without", row]
    return " ".join(words)


def _content(
    asked: AskedExperiment,
    experiment: Experiment,
    scale: Scale,
    results: Results,
    sheet: Sheet,
    machines: list[dict[str, str]],
) -> dict[str, Any]:
    curves = [c for one in results.trained.values() for c in one.curves.values()]
    content: dict[str, Any] = {
        "name": asked.name,
        "scale": asked.scale,
        "figure": experiment.figure,
        "question": experiment.question,
        "command": command_of(asked),
        "stated": [asdict(stated) for stated in experiment.stated],
        "chosen": list(experiment.chosen),
        "images": dict(results.card),
        "examples": scale.examples,
        "trials": dict(results.trials),
        "seeds": scale.seeds,
        "machines": machines,
        "training_seconds": round(sum(curve.last.seconds for curve in curves), 1),
        "missing": {
            one.point.label: one.missing for one in results.trained.values() if one.missing
        },
        **asdict(sheet),
    }
    return content | {"hash": sha256_json(_without_nan(content))[:12]}


def _without_nan(value: Any) -> Any:
    """Return plain values in which a number that is not finite is text."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def _page(content: Mapping[str, Any], sheet: Sheet, folder: Path) -> str:
    from pipelines.paper import method_charts as charts
    from pipelines.pipeline.panels import data_uri

    page = templates("pipelines.paper").get_template("paper.html")
    return page.render(
        **content,
        drawn=[(chart, charts.draw(chart)) for chart in sheet.charts],
        shots=[
            (picture, data_uri((folder / picture.file).read_bytes())) for picture in sheet.pictures
        ],
    )
