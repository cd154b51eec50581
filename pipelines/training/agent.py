"""torchrun that also records how each rank ended: `pipelines.training.agent FILE ARGUMENTS`.

torchrun prints text about failed ranks. Its elastic agent raises the same as an exception with the
exit code of every rank, which a program can read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.core.files import read_json, write_json


def main(codes: Path, arguments: list[str]) -> int:
    """Run torchrun; if ranks fail, write their exit codes.

    Args:
        codes: The file to write: rank → exit code, negative for a signal.
        arguments: The arguments of torchrun.

    Returns:
        The exit code, 1 if a rank failed.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        found = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_json(codes, found)
        print(error, file=sys.stderr)
        return 1
    return 0


def exit_codes(path: Path) -> dict[int, int]:
    """Return rank → exit code; nothing if no rank failed before the agent itself ended."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return {int(rank): int(code) for rank, code in found.items()}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
