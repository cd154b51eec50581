"""MLflow: what was measured. The connection, the runs of trainings, and their end."""

from __future__ import annotations

from pipelines.tracking.liveness import close_dead_runs
from pipelines.tracking.runs import (
    WEIGHTS_TAG,
    TrainingRun,
    find_run,
    import_history,
    import_run,
    metric_name,
    run_status,
    training_run,
)
from pipelines.tracking.store import (
    answering,
    artifact_root,
    connect,
    experiment_id,
    shown_uri,
    tracking_uri,
)

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
