"""One rank of a training: `python -m pipelines.training.rank JOB.json`, started by torchrun.

Torch and what needs it are imported late: a rank must notice at once that its run is gone.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from pipelines.config import TrainConfig
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.processes import end_with_keeper, exit_on_sigterm


@dataclass(frozen=True)
class Job:
    """All that a rank is told.

    Attributes:
        config: The `train` section of the parameters.
        prepared: Directory of prepared images.
        out: Directory in which the trained network is left.
        events: File to which rank 0 appends what happens.
        device: `cpu` or `cuda`.
        threads: Threads of torch in each rank.
    """

    config: TrainConfig
    prepared: str
    out: str
    events: str
    device: str
    threads: int

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read and check a job."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


def main(path: Path) -> int:
    """Train as one rank; rank 0 reports and saves."""
    exit_on_sigterm()
    end_with_keeper()
    import torch

    from pipelines.training.events import EventWriter
    from pipelines.training.loop import Loop, save
    from pipelines.training.parallel import ranks

    job = Job.read(path)
    torch.set_num_threads(job.threads)
    with ranks(job.device) as peers:
        emit = EventWriter(Path(job.events)) if peers.rank == 0 else None
        try:
            loop = Loop(job.config, Path(job.prepared), peers, emit)
            if emit:
                emit("start", steps=loop.steps, epochs=job.config.epochs, processes=peers.size)
            best = loop.run()
        except UserError as error:
            if emit:
                emit("error", message=str(error))
            return UserError.exit_code
        if emit:
            save(Path(job.out), loop.spec, loop.network)
            emit("end", steps=loop.step, refreshes=loop.refreshes, best=best)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
