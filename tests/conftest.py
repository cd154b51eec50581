"""Shared by all tests: an environment in which nothing leaves a temporary folder."""

from __future__ import annotations

import os
import tempfile

# Before torch or MLflow is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault(
    "DVC_SITE_CACHE_DIR", os.path.join(tempfile.gettempdir(), "prong-dvc")
)  # else in /var/tmp
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "prong-matplotlib"))
for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
    os.environ.pop(name, None)
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "prong-hypothesis")
)

from hypothesis import HealthCheck, settings

# Loaded machines draw slowly; that says nothing about the code under test.
settings.register_profile(
    "prong", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("prong")
