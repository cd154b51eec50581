"""What the servers of a checkout ask for, so that no other user of the machine can use them.

Loopback is no boundary: every user of the machine can connect to it. Each server that this project
starts has a secret of its own, made once, in a file that only the checkout's owner can read. It is
handed on by environment variables, never on a command line, which every user can read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipelines.core.paths import Layout
from pipelines.core.private import private_folder, private_text

Server = Literal["mlflow", "prefect"]
USER = "prong"
"""The user name that a server's page asks for."""
_BEGINS = {"mlflow": "", "prefect": f"{USER}:"}  # Prefect's page asks for both in one field


def secret_file(layout: Layout, server: Server) -> Path:
    """Return the file that holds the secret of one server."""
    return layout.state / "secrets" / server


def secret(layout: Layout, server: Server) -> str:
    """Return the secret of one server; it is made at the first call.

    Args:
        layout: The checkout.
        server: Which server's.

    Returns:
        MLflow's: the password of the user `prong`. Prefect's: `prong:` and a password, as
        `PREFECT_API_AUTH_STRING` has it.

    Raises:
        UserError: If another user owns or may read the file.
        OSError: If it cannot be made or read.
    """
    path = secret_file(layout, server)
    if not path.exists():
        private_folder(layout.state)
    return private_text(path, _BEGINS[server])
