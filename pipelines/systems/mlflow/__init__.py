"""MLflow: what was measured and what is released. Only this package imports it.

`registered_models`, `logged_models` and `artifacts` are the registry's calls, by name; here are
the connection, the runs of trainings, and their end.
"""

from __future__ import annotations

# First: MLflow reads its surroundings when it is imported, and this file runs before its modules.
import pipelines.systems.mlflow.surroundings  # noqa: F401

# isort: split
from mlflow import MlflowClient

from pipelines.systems.mlflow.address import answering, artifact_root, shown_uri, tracking_uri
from pipelines.systems.mlflow.dead_runs import close_dead_runs
from pipelines.systems.mlflow.imported_runs import (
    RecordedRun,
    find_run,
    import_history,
    import_run,
    log_reports,
    read_run,
    run_status,
)
from pipelines.systems.mlflow.runs import WEIGHTS_TAG, TrainingRun, metric_name, training_run
from pipelines.systems.mlflow.store import connect, experiment_id, probe
from pipelines.systems.mlflow.study_runs import BEST_TAG, StudyRun, study_run

__all__ = [
    "BEST_TAG",
    "WEIGHTS_TAG",
    "MlflowClient",
    "RecordedRun",
    "StudyRun",
    "TrainingRun",
    "answering",
    "artifact_root",
    "close_dead_runs",
    "connect",
    "experiment_id",
    "find_run",
    "import_history",
    "import_run",
    "log_reports",
    "metric_name",
    "probe",
    "read_run",
    "run_status",
    "shown_uri",
    "study_run",
    "tracking_uri",
    "training_run",
]
