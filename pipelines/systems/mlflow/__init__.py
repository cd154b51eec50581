"""MLflow: what was measured. The connection, the runs of trainings, and their end."""

from __future__ import annotations

from pipelines.systems.mlflow.address import answering, artifact_root, shown_uri, tracking_uri
from pipelines.systems.mlflow.dead_runs import close_dead_runs
from pipelines.systems.mlflow.imported_runs import find_run, import_history, import_run, run_status
from pipelines.systems.mlflow.runs import WEIGHTS_TAG, TrainingRun, metric_name, training_run
from pipelines.systems.mlflow.store import connect, experiment_id

__all__ = [
    "WEIGHTS_TAG",
    "TrainingRun",
    "answering",
    "artifact_root",
    "close_dead_runs",
    "connect",
    "experiment_id",
    "find_run",
    "import_history",
    "import_run",
    "metric_name",
    "run_status",
    "shown_uri",
    "tracking_uri",
    "training_run",
]
