"""MLflow's surroundings: quiet, private, and failing in seconds. Imported before MLflow."""

from __future__ import annotations

import logging
import os

# What the user has set is kept.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)
# Each retry would be a line on the terminal; what matters is said once, at the end.
for _name in ("alembic", "urllib3.connectionpool"):
    logging.getLogger(_name).setLevel(logging.ERROR)
