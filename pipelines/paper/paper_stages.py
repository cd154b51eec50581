"""The stages of an experiment: `python -m pipelines.paper.paper_stages NAME …` in its folder.

`data` reads the images, `search STUDY` makes the trials of a study, `train POINT` those of a
point of the figure, one for each seed, and `report` the page. Each trial and each training is a run
of MLflow.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.core.environment import set_up
from pipelines.core.errors import UserError, disk_error
from pipelines.core.files import atomic_directory, read_json, sha256_json, write_json
from pipelines.core.paths import Layout
from pipelines.paper import paper_images as images
from pipelines.paper import plan, records, tuning
from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import Curve, CurveMark, Experiment, Scale, TrainingTask
from pipelines.paper.plan import AskedExperiment
from pipelines.systems import mlflow as tracking
from pipelines.systems.dvc.stage_process import run_stage
from pipelines.systems.optuna.dimensions import Value

Values = Mapping[str, Value]


def data(folder: Path, asked: AskedExperiment) -> None:
    """Make `data`: the images, and a card of them."""
    experiment, scale = asked.experiment()
    layout = Layout(Path(asked.checkout))
    place = images.ImagePlace(layout.root, layout.downloads, asked.mirror)
    experiment.prepare(scale, place, folder / "data")


class _TrialRun:
    """Records a trial in MLflow."""

    def __init__(self, runs: tracking.StudyRun, run: tracking.TrainingRun) -> None:
        self._runs, self._run = runs, run

    def mark(self, mark: CurveMark) -> None:
        self._run.log(_metrics(mark), step=mark.update)

    def end(self, reason: str) -> None:
        self._run.tag("prong.ended", reason or "complete")
        self._runs.end(self._run, "FINISHED")


class _Recorder:
    """Records the trials of a study in MLflow."""

    def __init__(self, runs: tracking.StudyRun) -> None:
        self._runs = runs

    def begin(self, number: int, values: Values) -> _TrialRun:
        return _TrialRun(self._runs, self._runs.begin(f"trial {number + 1}", values, {}))


def search(folder: Path, asked: AskedExperiment, key: str) -> None:
    """Make `search/STUDY.json`: the trials of a study."""
    experiment, scale = asked.experiment()
    study = scale.studies[key]
    out = plan.search_of(folder, key)
    if missing := METHODS[study.method].missing:
        records.write_search(out, records.StudyResult([], missing))
        return
    examples = experiment.load(folder / "data")
    identity = _identity(folder, scale)

    def run(values: Values, checkpoint: Path, say: Callable[[CurveMark], None]) -> Curve:
        task = TrainingTask(study.method, values, tuning.SEED, False, checkpoint, say)
        return experiment.train(scale, examples, task)

    noted = folder / plan.KEPT / f"{key}.run.json"
    resume = str(read_json(noted)) if noted.is_file() else None
    with tracking.study_run(
        Layout(Path(asked.checkout)),
        experiment=asked.runs,
        name=f"search {key}",
        params={"method": study.method, **study.fixed},
        resume=resume,
    ) as runs:
        write_json(noted, runs.run_id)
        found = tuning.search(
            study,
            scale.trials,
            folder / plan.KEPT,
            identity,
            run,
            lambda curve: experiment.score(scale, curve),
            _Recorder(runs),
            lambda line: print(f"  {key}: {line}", flush=True),
        )
    records.write_search(out, found)


def _identity(folder: Path, scale: Scale) -> list[Any]:
    """Return what decides, beside the settings, what comes of a training."""
    code = read_json(folder / "code/training.json")
    return [plan.identity(scale), code, images.card_of(folder / "data")["content"]]


def _found(folder: Path, scale: Scale, key: str) -> tuple[Values, str]:
    """Return the settings of a point, and why there are none."""
    point = scale.points[key]
    method = METHODS[point.method]
    if method.missing or not point.study:
        return point.values, method.missing
    best = records.read_search(plan.search_of(folder, point.study)).best(point.where)
    if best is None:
        return {}, "no trial of its study was trained to its end"
    return {**best.values, **point.values}, ""


def train(folder: Path, asked: AskedExperiment, key: str) -> None:
    """Make `trained/POINT`: the trainings of a point, one for each seed.

    What a training leaves is kept beside, so that after a kill, or with more seeds, only those
    that are missing are made.
    """
    experiment, scale = asked.experiment()
    values, missing = _found(folder, scale, key)
    with atomic_directory(plan.record_of(folder, key, 0).parent) as out:
        for seed in range(scale.seeds):
            shared = [*_identity(folder, scale), scale.points[key].method, dict(values), missing]
            name = sha256_json([*shared, seed])[:16]
            kept = folder / plan.KEPT / f"trained-{name}"
            if not kept.is_dir():
                with atomic_directory(kept) as files:
                    state = kept.with_name(f"train-{name}.safetensors")
                    made = (experiment, scale, folder, asked, files, state, key, seed)
                    _train(*made, values, missing)
            shutil.copytree(kept, out / str(seed))
    if missing:
        print(f"  {scale.points[key].label}: {missing}")


def _train(
    experiment: Experiment,
    scale: Scale,
    folder: Path,
    asked: AskedExperiment,
    files: Path,
    state: Path,
    key: str,
    seed: int,
    values: Values,
    missing: str,
) -> None:
    """Make one training; it leaves `record.json` and perhaps more in `files`."""
    from pipelines.paper.machine import environment

    point, curve = scale.points[key], None
    if not missing:
        with tracking.training_run(
            Layout(Path(asked.checkout)),
            experiment=asked.runs,
            params={"method": point.method, "seed": seed, **values},
            tags={"mlflow.runName": f"{point.label}, seed {seed}", "prong.point": key},
        ) as run:

            def log(mark: CurveMark) -> None:
                run.log(_metrics(mark), step=mark.update)

            task = TrainingTask(point.method, values, seed, True, state, log, files)
            curve = experiment.train(scale, experiment.load(folder / "data"), task)
            if curve.reason:
                run.tag("prong.ended", curve.reason)
    records.write_record(files / "record.json", values, curve, environment(), missing)


def _metrics(mark: CurveMark) -> dict[str, float]:
    found = {**mark.figures, "seconds": mark.seconds}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def report(folder: Path, asked: AskedExperiment) -> None:
    """Make `report`: the page, the figures as JSON, and pictures."""
    from pipelines.paper.paper_report import write_report

    write_report(folder, asked)


def run(words: list[str], folder: Path) -> None:
    """Run one stage here.

    Raises:
        UserError: If the stage is unknown, or says so.
    """
    asked = plan.asked_in(folder)
    try:
        set_up(Layout(Path(asked.checkout)))
        match words:
            case ["data"]:
                data(folder, asked)
            case ["search", key]:
                search(folder, asked, key)
            case ["train", key]:
                train(folder, asked, key)
            case ["report"]:
                report(folder, asked)
            case _:
                raise UserError(
                    f"stage {' '.join(words)!r}: unknown; allowed: data, search STUDY, "
                    "train POINT, report"
                )
    except OSError as error:
        mended = disk_error(error)
        if mended is None:
            raise
        raise mended from error


if __name__ == "__main__":
    sys.exit(run_stage(lambda: run(sys.argv[1:], Path.cwd())))
