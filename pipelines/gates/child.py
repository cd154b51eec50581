"""The process that judges: `python -m pipelines.gates.child FOLDER`.

It holds a version to every gate and appends to a file what it does, one JSON object a line:
`{"begun": NAME}` before each gate and the finding after it. So the process that started it knows
which gate was at work when a limit ended this one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipelines.systems.confined import OUT_OF_MEMORY, end_with_parent

PROGRESS = "progress.jsonl"


def main(folder: Path) -> int:
    """Judge by the request in a folder, as long as the parent is there; return the exit code.

    Args:
        folder: As `pipelines.gates.fetched` leaves it.
    """
    end_with_parent()
    return judge_folder(folder)


def judge_folder(folder: Path) -> int:
    """Judge by the request in a folder, in this process; return the exit code."""
    # ONNX Runtime only now: what is gone already must not cost the time to load it.
    from pipelines.gates.catalogue import found, in_order
    from pipelines.gates.fetched import read_request
    from pipelines.gates.of_variants import gates_of
    from pipelines.systems.onnx.runtime import OutOfMemory

    own = folder / "own"
    own.mkdir()
    with (folder / PROGRESS).open("a", encoding="ascii") as progress:

        def tell(value: dict[str, Any]) -> None:
            progress.write(json.dumps(value, allow_nan=False) + "\n")
            progress.flush()

        try:
            evidence = read_request(folder).evidence(own)
            gates = gates_of(evidence.variant)
            for name in in_order(gates):
                tell({"begun": name})
                tell(found(name, evidence, gates).as_json())
        except (MemoryError, OutOfMemory):
            return OUT_OF_MEMORY
        except OSError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return os.EX_IOERR
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # at once: what a model left running has nothing to say
