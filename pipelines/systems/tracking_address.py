"""Where the tracking store is: the setting alone, for what must start without loading MLflow."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout

SETTING = "MLFLOW_TRACKING_URI"
SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def tracking_uri(layout: Layout) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the checkout's own database if it is not set.

    Raises:
        UserError: If it is neither a server nor a database.
    """
    uri = os.environ.get(SETTING) or f"sqlite:///{layout.state / 'mlflow.db'}"
    if scheme(uri) not in (*SERVERS, *DATABASES, "databricks"):
        raise UserError(
            f"{SETTING} = {uri!r}: not a tracking store; allowed: a server (http://host:port), "
            "a database (sqlite:///path, postgresql://…), or unset for the checkout's own"
        )
    return uri


def shown_uri(uri: str) -> str:
    """Return a store's address without the password it may carry."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def scheme(uri: str) -> str:
    """Return what kind of store an address names, without its driver."""
    return urlsplit(uri).scheme.partition("+")[0]
