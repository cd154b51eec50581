"""One rank of a training: `python -m pipelines.training.rank JOB.json`, started by torchrun.

torch is imported late, because a rank must notice immediately that its run has ended.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from pipelines.core import faults
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError, disk_error
from pipelines.core.files import write_json
from pipelines.systems.processes import end_with_keeper, exit_on_sigterm
from pipelines.training.heartbeat import Heartbeat

if TYPE_CHECKING:
    from pipelines.training.events import EventWriter
    from pipelines.training.loop import Loop
    from pipelines.training.parallel import TrainingRanks
    from pipelines.training.stopping import Stop
    from pipelines.training.training_folder import TrainingFolder

_SHORT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.I)
_SYSTEM = re.compile(r"\(os error (\d+)\)")
_PEER = re.compile(r"gloo|nccl|Connection (closed|reset)|Broken pipe|TCPStore|heartbeat", re.I)


@dataclass(frozen=True)
class Job:
    """The task of a rank.

    Attributes:
        config: The `train` section of the parameters.
        prepared: Directory of prepared images.
        folder: The training's folder; see `TrainingFolder`.
        device: `cpu` or `cuda`.
        threads: Threads of torch in each rank.
        checkpoint: Steps between checkpoints.
        keep: Number of checkpoints to keep.
        timeout: Seconds without progress after which a rank counts as hung.
        ranks: Number of ranks on all machines.
        attempt: Name of this attempt at the training.
    """

    config: TrainConfig
    prepared: str
    folder: str
    device: str
    threads: int
    checkpoint: int
    keep: int
    timeout: float
    ranks: int
    attempt: str

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read and check a job."""
        return TypeAdapter(cls).validate_json(path.read_bytes())


class AfterStep:
    """The work of a rank between two steps: heartbeat, check for a stop, checkpoint."""

    def __init__(
        self,
        job: Job,
        folder: TrainingFolder,
        peers: TrainingRanks,
        heartbeat: Heartbeat,
        stop: Stop,
        emit: EventWriter | None,
    ) -> None:
        self._job, self._folder, self._peers = job, folder, peers
        self._heartbeat, self._stop, self._emit = heartbeat, stop, emit
        self._saved: tuple[int, bool] | None = None
        self._elapsed, self._start = 0.0, time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds spent on the training, including the saved part of earlier attempts."""
        return self._elapsed + time.monotonic() - self._start

    def __call__(self, loop: Loop, phase: str) -> None:
        """Save and raise `Stopped` if the ranks agree to stop; otherwise save when due."""
        from pipelines.training.stopping import Stopped

        self._heartbeat(phase, loop.step)
        signum = self._stop.agreed(now=phase != "training")
        # The state after the last step is saved once, as finished.
        on_the_way = phase == "training" and loop.step < loop.steps
        due = on_the_way and loop.step % self._job.checkpoint == 0
        if (signum or due) and loop.step:
            self.save(loop)
        if signum:
            raise Stopped(signum)

    def save(self, loop: Loop, *, finished: bool = False) -> None:
        """Write a checkpoint, unless the last one has the same content."""
        from pipelines.training import checkpoint

        if self._saved == (loop.step, loop.unscored) and not finished:
            return
        self._heartbeat("saving", loop.step)
        if self._emit:
            self._emit.sync()
        state = loop.state()
        state.meta["events"] = self._emit.count if self._emit else 0
        state.meta["elapsed"] = self.elapsed
        state.meta["finished"] = finished
        checkpoint.write(
            self._folder.checkpoints,
            loop.step,
            rank=self._peers.rank,
            ranks=self._peers.size,
            barrier=self._peers.barrier,
            meta=state.meta,
            shared=state.shared,
            numbers=state.numbers,
            own=state.own,
            keep=self._job.keep,
        )
        self._saved = (loop.step, loop.unscored)

    def resumed(self, loop: Loop, elapsed: float) -> None:
        """Record that the current state was read from a checkpoint."""
        self._saved, self._elapsed = (loop.step, loop.unscored), elapsed


def main(path: Path) -> int:
    """Train as one rank, and write how it ended."""
    exit_on_sigterm()
    end_with_keeper()
    job = Job.read(path)
    from pipelines.training.training_folder import TrainingFolder

    folder = TrainingFolder(Path(job.folder))
    lock = folder.hold_as_rank()
    heartbeat = Heartbeat(folder.signs, int(os.environ.get("RANK", "0")))
    try:
        code = _train(job, folder, heartbeat)
    except (KeyboardInterrupt, SystemExit):
        heartbeat.end("stopped", time=time.time())
        code = 143
    except UserError as error:
        heartbeat.end("error", kind="user", message=str(error), time=time.time())
        code = UserError.exit_code
    except BaseException as error:
        said = _explained(error, job, heartbeat)
        heartbeat.end("error", **said, time=time.time())
        code = UserError.exit_code if said["kind"] == "user" else 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # leaving the process group could wait for ranks that have ended
    heartbeat.end("done", time=time.time())
    lock.close()
    return 0


def _train(job: Job, folder: TrainingFolder, heartbeat: Heartbeat) -> int:
    import torch

    from pipelines.training import checkpoint
    from pipelines.training.events import EventWriter
    from pipelines.training.loop import Loop, save
    from pipelines.training.parallel import ranks
    from pipelines.training.stopping import Stop, Stopped

    torch.set_num_threads(job.threads)
    heartbeat("joining")
    # Supervision should detect a hung rank before the collectives of the others time out.
    with ranks(job.device, 2 * job.timeout + 60) as peers:
        heartbeat("loading data")
        saved = checkpoint.agreed(folder.checkpoints, peers.rank, peers.told)
        emit = None
        if peers.rank == 0:
            emit = EventWriter(folder.events, int(saved.meta["events"]) if saved else 0)
        stop = Stop(peers)
        after_step = AfterStep(job, folder, peers, heartbeat, stop, emit)
        loop = Loop(job.config, Path(job.prepared), peers, emit, after_step)
        if saved:
            loop.restore(saved)
            after_step.resumed(loop, float(saved.meta["elapsed"]))
        stop.listen()
        if emit:
            said = {"steps": loop.steps, "epochs": job.config.epochs, "processes": peers.size}
            emit("start", **said, step=loop.step)
        try:
            best = loop.run()
            after_step.save(loop, finished=True)
            faults.point("train.finished")
        except Stopped as stopped:
            heartbeat.end("stopped", signal=stopped.signum, time=time.time())
            return 128 + stopped.signum
        if emit:
            save(folder.network, loop.spec, loop.network)
            emit(
                "end",
                steps=loop.step,
                refreshes=loop.refreshes,
                best=best,
                seconds=after_step.elapsed,
            )
            emit.close()
            faults.point("train.saved")
    return 0


def _explained(error: BaseException, job: Job, heartbeat: Heartbeat) -> dict[str, object]:
    """Return the record of a failed rank."""
    text = " ".join(str(error).split())
    last, config = heartbeat.last, job.config
    number = _SYSTEM.search(text)  # in the text of a library's own exception
    full = error if isinstance(error, OSError) else OSError(int(number[1]) if number else 0, text)
    if mended := disk_error(full):
        return {"kind": "user", "message": f"{mended} (rank {last.rank}, {last.phase})"}
    if isinstance(error, MemoryError) or _SHORT_OF_MEMORY.search(text):
        place = "the GPU" if job.device == "cuda" else "this machine"
        return {
            "kind": "user",
            "message": (
                f"out of memory on {place}, rank {last.rank} of {job.ranks}, {last.phase} at step "
                f"{last.step}: lower train.batch (now {config.batch}), or raise train.accumulate "
                f"(now {config.accumulate}) to process a batch in more parts; train.width "
                f"({config.width}), train.hidden ({config.hidden}) and train.samples "
                f"({config.samples}) need memory too ({text[:200]})"
            ),
        }
    return {
        "kind": "peer" if _PEER.search(text) else "crash",
        "message": f"{type(error).__name__}: {text}",
        "traceback": traceback.format_exc(),
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
