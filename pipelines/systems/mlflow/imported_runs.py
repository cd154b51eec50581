"""Training runs that are looked up later, or brought from reports after the fact."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipelines.core.paths import Layout
from pipelines.systems.mlflow.address import answering
from pipelines.systems.mlflow.artifacts import check_own
from pipelines.systems.mlflow.locations import follow_move
from pipelines.systems.mlflow.runs import (
    HISTORY_TAG,
    POINTS_PER_CALL,
    WEIGHTS_TAG,
    create_run,
    metric_name,
)
from pipelines.systems.mlflow.store import connect


def find_run(layout: Layout, experiment: str, weights_sha256: str) -> str | None:
    """Return the newest run that made these weights, a finished one before others, or None.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    client = connect(layout)
    with answering(layout):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = client.search_runs(
            [found.experiment_id],
            f"tags.`{WEIGHTS_TAG}` = '{weights_sha256}'",
            max_results=20,
            order_by=["attributes.start_time DESC"],
        )
    runs.sort(key=lambda run: run.info.status != "FINISHED")
    return str(runs[0].info.run_id) if runs else None


def import_run(
    layout: Layout,
    *,
    experiment: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    reports: Path,
) -> str:
    """Make a finished run of a training that happened elsewhere, from its tables.

    Args:
        layout: The checkout.
        experiment: Its name; made if absent.
        params: Knobs by full name.
        tags: The run's tags.
        reports: Folder of `history.csv` and `conditioning.csv`.

    Returns:
        The run's id.
    """
    client = connect(layout)
    with answering(layout):
        said = {**tags, "prong.imported": "true"}
        run_id = create_run(layout, client, experiment, params, said)
    import_history(layout, run_id, reports)
    return run_id


def import_history(layout: Layout, run_id: str, reports: Path) -> int:
    """Bring the points of a training's tables that a run lacks, and end the run if it is open.

    Args:
        layout: The checkout.
        run_id: The run; nothing is done if its history is marked complete.
        reports: Folder of `history.csv` and `conditioning.csv`; absent files hold no points.

    Returns:
        How many points were brought.

    Raises:
        UserError: If the run's files lie at a place that is not this project's.
        Unavailable: If the store does not answer.
    """
    client = connect(layout)
    follow_move(layout)
    with answering(layout):
        run = client.get_run(run_id)
        check_own(layout, run.info.artifact_uri)
        missing: list[Metric] = []
        if run.data.tags.get(HISTORY_TAG) != "complete":
            now = int(time.time() * 1000)
            for name, points in _points(reports).items():
                there = name in run.data.metrics
                steps = {m.step for m in client.get_metric_history(run_id, name)} if there else ()
                missing += [Metric(name, v, now, s) for s, v in points.items() if s not in steps]
            for start in range(0, len(missing), POINTS_PER_CALL):
                client.log_batch(run_id, metrics=missing[start : start + POINTS_PER_CALL])
            client.set_tag(run_id, HISTORY_TAG, "complete")
        if run.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
    return len(missing)


def _points(reports: Path) -> dict[str, dict[int, float]]:
    """Return metric → step → value of the tables of a training."""
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for table in ("history.csv", "conditioning.csv"):
        path = reports / table
        if not path.is_file():
            continue
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step, layer = int(row.pop("step")), row.pop("layer", None)
                for key, text in row.items():
                    value = _number(text)
                    if value is not None:
                        name = metric_name(f"{key}/{layer}" if layer else key)
                        points[name][step] = value
    return points


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # an empty cell, or a column of words
        return None


def log_reports(
    client: MlflowClient, run_id: str, figures: Iterable[tuple[str, float]], reports: Path
) -> None:
    """Write figures and the folder of reports onto a run.

    Args:
        client: Of the store.
        run_id: The run.
        figures: Name and value; characters that MLflow does not take become `_`.
        reports: The folder, kept as the artifact `reports`.
    """
    now = int(time.time() * 1000)
    points = [Metric(metric_name(name), value, now, 0) for name, value in figures]
    for start in range(0, len(points), POINTS_PER_CALL):
        client.log_batch(run_id, metrics=points[start : start + POINTS_PER_CALL])
    client.log_artifacts(run_id, str(reports), "reports")


@dataclass(frozen=True)
class RecordedRun:
    """What is known of a run.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: By name.
        metrics: The last value of each, by name.
        tags: By name.
    """

    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def read_run(client: MlflowClient, run_id: str) -> RecordedRun | None:
    """Return what is known of a run, or None if there is no such run."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    data = run.data
    return RecordedRun(str(run.info.status), {**data.params}, {**data.metrics}, {**data.tags})


def run_status(layout: Layout, run_id: str) -> str | None:
    """Return how a run stands (RUNNING, FINISHED …), or None if there is no such run.

    Raises:
        Unavailable: If the store does not answer.
    """
    client = connect(layout)
    with answering(layout):
        run = read_run(client, run_id)
    return None if run is None else run.status
