"""MLflow's server on loopback for `prong ui`: it asks for the checkout's secret.

MLflow's own `--app-name basic-auth` needs a package more, keeps users in a database of its own,
and lets pages of other ports of this machine in. A guard in front of MLflow's application does what
is wanted here: one user, one secret, the server's own pages. The store's address is handed over by
environment variables, as MLflow hands it to its own workers: it may hold a password.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

from pipelines.core.paths import Layout
from pipelines.systems.loopback import Guard, hosts, listen, origins, port_of, serve
from pipelines.systems.mlflow.address import artifact_root, tracking_uri
from pipelines.systems.processes import end_with_keeper, kept
from pipelines.systems.secrets import USER, secret

__all__ = ["HEALTH", "listen", "start"]

HEALTH = "/health"
"""Path that says whether the server answers; it needs no secret."""


def start(
    layout: Layout, listener: socket.socket, output: IO[bytes]
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server of the tracking store that ends with this process at the latest.

    Args:
        layout: The checkout whose secret it asks for.
        listener: Where it listens.
        output: What it prints goes there.

    Returns:
        Its process, and its address.

    Raises:
        UserError: If the store's address is wrong, or another user may read the secret.
    """
    uri, port = tracking_uri(layout), port_of(listener)
    secret(layout, "mlflow")  # a mistake is said here, not in the server's log
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": uri,
        "_MLFLOW_SERVER_REGISTRY_STORE": uri,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root(layout),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts(port)),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins(port)),
    }
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pipelines.systems.mlflow.web_server"),
            *(str(listener.fileno()), str(layout.root)),
        ],
        cwd=layout.root,
        env=kept({**os.environ, **settings}),
        pass_fds=(listener.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return process, f"http://127.0.0.1:{port}"


def main(descriptor: int, root: Path) -> None:
    """Serve on an open socket until told to end or left alone.

    Args:
        descriptor: Of the socket.
        root: The checkout.
    """
    end_with_keeper()
    asked = f"{USER}:{secret(Layout(root), 'mlflow')}"
    from mlflow.server.fastapi_app import app

    listener = socket.socket(fileno=descriptor)
    guard = Guard(app, port_of(listener), credentials=asked, open_path=HEALTH)
    serve(guard, listener, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
