"""The process that watches the registry: `… watch_registry ROOT MODEL POLL SHADOW`.

The server starts it, so that importing MLflow and asking the registry cost the server nothing. It
writes one line for each look (`pipelines.serving.watch.lines`), and ends with the server.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pipelines.systems.confined import end_with_parent

_NICENESS = 10  # answering comes first


def main(root: Path, model: str, poll: float, shadow: bool) -> int:
    """Look at the registry every so often, and write what is found to the standard output.

    Args:
        root: The checkout.
        model: The registered model's name.
        poll: Seconds between two looks.
        shadow: Whether the challenger's file is fetched too.

    Returns:
        The exit code, once nobody reads what is written.
    """
    end_with_parent()
    os.nice(_NICENESS)
    # MLflow only now: what is gone already must not cost the time to load it.
    from pipelines.core.environment import set_up
    from pipelines.core.paths import Layout
    from pipelines.serving.watch.looking import Looking

    layout = Layout(root)
    set_up(layout)
    looking = Looking(layout, model, shadow=shadow)
    while True:
        began = time.monotonic()
        try:
            os.write(sys.stdout.fileno(), looking.look().line())
        except BrokenPipeError:
            return 0
        time.sleep(max(began + poll - time.monotonic(), poll / 10))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] == "shadow"))
