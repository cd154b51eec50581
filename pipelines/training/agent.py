"""torchrun that also records how each rank ended: `pipelines.training.agent FILE ARGUMENTS`.

torchrun prints text about failed ranks. Its elastic agent raises the same as an exception with the
exit code of every rank, which a program can read.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from pipelines.core.files import read_json, write_json
from pipelines.training.heartbeat import ends


def main(codes: Path, arguments: list[str]) -> int:
    """Run torchrun; if ranks fail, write their exit codes.

    Args:
        codes: The file to write: rank → exit code, negative for a signal.
        arguments: The arguments of torchrun.

    Returns:
        The exit code: 1 if a rank failed, `STOPPED` if all were told to end.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        found = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        # On several machines each writes of its own ranks.
        write_json(codes.with_stem(f"{codes.stem}-{min(error.failures, default=0)}"), found)
        print(error, file=sys.stderr)
    except SignalException as error:
        print(error, file=sys.stderr)
    else:
        return 0
    hows = {said["how"] for said in ends(codes.parent).values()}
    return STOPPED if hows == {"stopped"} else 1


STOPPED = 128 + signal.SIGTERM
"""Exit code if ranks were told to end, saved and ended, and none failed."""


def exit_codes(path: Path) -> dict[int, int]:
    """Return rank → exit code; nothing if no rank failed before the agents themselves ended."""
    found: dict[int, int] = {}
    for each in path.parent.glob(f"{path.stem}-*.json"):
        try:
            found |= {int(rank): int(code) for rank, code in read_json(each).items()}
        except (FileNotFoundError, ValueError):
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
