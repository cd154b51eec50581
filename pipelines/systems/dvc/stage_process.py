"""The process of a stage: it leaves a record of how it ended for whoever had DVC run it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.core.environment import RECORD
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.files import write_json
from pipelines.core.text import print_anything, shown_lines
from pipelines.systems.processes import end_with_keeper, exit_on_sigterm


def run_stage(action: Callable[[], None]) -> int:
    """Run a stage in this process; leave a record where one is asked for.

    Args:
        action: The stage.

    Returns:
        The exit code.
    """
    exit_on_sigterm()
    end_with_keeper()
    print_anything()
    # Before torch is loaded: spinning threads cost a busy machine several times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    record = os.environ.pop(RECORD, None)
    start = time.monotonic()
    message, code, silent = None, 0, False
    try:
        action()
    except UserError as error:
        message, code, silent = str(error), error.exit_code, isinstance(error, Unavailable)
        if record is None:
            print(shown_lines(f"error: {message}"), file=sys.stderr)
    except Failed as error:
        print(shown_lines(f"error: {error}"), file=sys.stderr)
        code = error.exit_code
    finally:
        if record is not None:
            said: dict[str, object] = {
                "ran": True,
                "seconds": time.monotonic() - start,
                "error": message,
                "unavailable": silent,
            }
            _leave(Path(record), said)
    return code


def _leave(record: Path, said: dict[str, object]) -> None:
    try:
        write_json(record, said)
    except OSError as error:  # a full disk must not hide what the stage had to say
        print(f"{json.dumps(said)} ({error})", file=sys.stderr)
