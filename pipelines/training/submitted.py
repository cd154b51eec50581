"""A training whose ranks an engine starts: submitted once, followed, found again, and ended.

The process that submits it is the same that supervises local ranks, with the same files: it reads
events and heartbeats from the training's folder, which all nodes see. The job's name derives from
that folder, whose name is the training's key. So whoever runs the same training again finds the job
that an earlier process left behind, and follows it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.config import ClusterConfig
from pipelines.core.errors import Failed, Interrupted, Unavailable, UserError
from pipelines.core.files import read_json, sha256_json, write_json, write_text
from pipelines.core.fingerprints import source_root
from pipelines.core.waiting import wait_until
from pipelines.systems.engines.submission import (
    SBATCH,
    TRAINJOB,
    Engine,
    JobRequest,
    JobStatus,
    own_template,
)
from pipelines.training import checkpoint
from pipelines.training.engine_choice import KUBERNETES, SLURM, engine_of
from pipelines.training.events import EventReader
from pipelines.training.heartbeat import ends
from pipelines.training.rank import Job
from pipelines.training.supervision import Hung, Machines, Watch, agent_command, failure
from pipelines.training.training_folder import TrainingFolder

POLL = 2.0
"""Seconds between two questions to an engine: its controller serves all users."""
PATIENCE = 600.0
"""Seconds for which an engine may be silent while a job runs."""
ENDING = 5.0
"""Seconds to wait for the end of a cancelled job, which goes on ending by itself."""
SAVING = 45
"""Seconds that ranks have for their last checkpoint, of the 60 before a time limit."""
_PAUSE = 0.1
_TEMPLATES = {SLURM: SBATCH, KUBERNETES: TRAINJOB}


class Lost(Interrupted):
    """A job ended because its place was taken from it; its ranks did nothing wrong."""


@dataclass(frozen=True)
class Submission:
    """One training and the engine that runs it.

    Attributes:
        engine: The engine.
        cluster: Its settings.
        folder: The training's folder.
        root: The checkout.
        machines: Number of nodes, and of ranks on each.
    """

    engine: Engine
    cluster: ClusterConfig
    folder: TrainingFolder
    root: Path
    machines: Machines

    @property
    def name(self) -> str:
        """The job's name: that of the training, and what tells its folder from others'."""
        path = self.folder.path.resolve()
        return f"prong-{path.name}-{sha256_json(str(path))[:8]}"

    def found(self) -> str | None:
        """Return the id of the job that an earlier process submitted and that has not ended."""
        return self.engine.find(self.name)

    def run(self, job: Job, found: str | None, *, restarts: int, tick: Callable[[], None]) -> None:
        """Submit the job, unless it is submitted already, and follow it to its end.

        Args:
            job: The job of the ranks, written to the folder.
            found: The id of the job that an earlier process submitted, or None.
            restarts: How often the ranks may be started again after one failed.
            tick: Called about ten times a second.

        Raises:
            UserError: If the engine refuses the job. For the rest see `follow`.
        """
        if found is None and self._finished():
            tick()  # all that is left to do is to read the events
            return None
        while True:
            before = self._step()
            found = found or self.submit(job, restarts)
            try:
                return self.follow(job, found, tick)
            except Lost as lost:
                if self._step() <= before:  # it would come to the same again
                    raise
                print(f"  train: {lost}; it is submitted again", flush=True)
                found = None

    def _step(self) -> int:
        """Return the step of the newest checkpoint, or -1."""
        saved = checkpoint.newest(self.folder.checkpoints)
        return saved.step if saved else -1

    def _finished(self) -> bool:
        """Return whether the job of a process that is gone has finished the training."""
        events = [event["kind"] for event in EventReader(self.folder.events)()]
        return bool(events) and events[-1] == "end" and self.folder.network.is_dir()

    def submit(self, job: Job, restarts: int) -> str:
        """Submit the job, which is written to the folder; return its id."""
        _record(self.folder, engine=self.cluster.engine, name=self.name)
        found = self.engine.submit(
            JobRequest(
                name=self.name,
                command=tuple(agent_command(job, self.folder, self.machines, restarts, SAVING)),
                nodes=self.machines.nodes,
                per_node=self.machines.processes,
                processors=self.cluster.processors,
                gpus=self.machines.processes if job.device == "cuda" else 0,
                folder=self.root,
                log=self.folder.log,
                seen=self.folder.job,
                saved=self.folder.checkpoints,
                env={
                    "OMP_NUM_THREADS": str(job.threads),
                    "OMP_WAIT_POLICY": "PASSIVE",
                    "PRONG_PATIENCE": str(int(job.timeout)),
                    "PYTHONPATH": str(source_root(self.root)),
                    "PYTHONUNBUFFERED": "1",
                },
                template=own_template(self.root, _TEMPLATES[self.cluster.engine]),
            )
        )
        _record(self.folder, engine=self.cluster.engine, name=self.name, job=found)
        return found

    def follow(self, job: Job, found: str, tick: Callable[[], None]) -> None:
        """Follow a job to its end; if this process is told to end, the job is cancelled.

        Args:
            job: The job of the ranks.
            found: The engine's id of it.
            tick: Called about ten times a second.

        Raises:
            UserError: If a rank says so, or the job cannot start as it was submitted.
            Interrupted: If the job was cancelled or stopped by others.
            Failed: If a rank crashed or hung, or the job ended without a result.
            Unavailable: If the engine was silent for `PATIENCE` seconds. The job goes on.
        """
        called = f"{self.engine.title} {found}"
        try:
            status = self._wait(job, found, tick)
        except Unavailable:
            raise
        except Hung as hung:
            self._cancel(found)
            raise Failed(hung.message) from None
        except BaseException:
            self._cancel(found)
            raise
        finally:
            tick()
        if status.phase == "unknown" and self._finished():
            status = JobStatus("ended", "done")  # so long ago that the engine has forgotten it
        forget_submission(self.folder)
        if status.how != "done":
            if not self.folder.log.is_file() and (text := self.engine.logs(found)):
                write_text(self.folder.log, text)
            raise self._ended(job, status, called)

    def _wait(self, job: Job, found: str, tick: Callable[[], None]) -> JobStatus:
        watch, before, silent = None, JobStatus("unknown"), 0.0
        asked = -POLL
        while True:
            now = time.monotonic()
            if now - asked >= POLL:
                asked = now
                try:
                    status = self.engine.poll(found)
                except Unavailable:
                    silent = silent or now
                    if now - silent > PATIENCE:
                        raise
                else:
                    silent = 0.0
                    if status != before:
                        _say(self.engine.title, found, status)
                    if status.how == "never":
                        raise UserError(self._never(found, status))
                    if status.phase in ("ended", "unknown"):
                        return status
                    if status.phase != "running":
                        watch = None
                    elif watch is None:
                        watch = Watch(self.folder, job.timeout, job.ranks)
                    before = status
            tick()
            if watch is not None:
                watch()
            time.sleep(_PAUSE)

    def _cancel(self, found: str) -> None:
        """End a job and give it a moment; a silent engine must not hide why it is to end."""
        try:
            self.engine.cancel(found)
            wait_until(
                lambda: self.engine.poll(found).phase in ("ended", "unknown"), ENDING, pause=0.3
            )
        except (Unavailable, Failed) as error:
            said = f"  train: {self.engine.title} {found} could not be cancelled: {error}"
            print(said, file=sys.stderr, flush=True)

    def _never(self, found: str, status: JobStatus) -> str:
        cluster, machines = self.cluster, self.machines
        settings = {
            "supervision.nodes": machines.nodes,
            "train.processes": machines.processes,
            "cluster.queue": cluster.queue,
            "cluster.minutes": cluster.minutes,
            "cluster.processors": cluster.processors,
        }
        if cluster.image:
            settings["cluster.image"] = cluster.image
        told = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
        return (
            f"{self.engine.title} {found} cannot start: {status.said}; look at {told}. "
            "It is cancelled"
        )

    def _ended(self, job: Job, status: JobStatus, called: str) -> Exception:
        """Return the exception for a job that ended without success, the ranks' own error first."""
        found = failure(job, self.folder, 1)
        if any(said.get("kind") in ("user", "crash") for said in ends(self.folder.signs).values()):
            return found
        saved = checkpoint.newest(self.folder.checkpoints)
        step = f" from step {saved.step}" if saved else ""
        again = f"; the same command continues{step}"
        match status.how:
            case "cancelled":
                return Interrupted(f"{called} was cancelled{again}")
            case "time":
                return Lost(
                    f"{called} reached its time limit (cluster.minutes = "
                    f"{self.cluster.minutes}){again}"
                )
            case "lost":
                return Lost(f"{called} lost its node: {status.said}{again}")
            case "memory":
                return UserError(
                    f"{called} ran out of memory: lower train.batch (now {job.config.batch}), "
                    "raise train.accumulate, or ask for more in the template of the job"
                )
        return found


def submission_of(folder: TrainingFolder, wanted: Job) -> Job:
    """Return the job of the ranks that an earlier process wrote and submitted.

    Raises:
        UserError: If it is not the one that is wanted now.
    """
    known = Job.read(folder.job)
    for key, now, then in (
        ("train.processes × supervision.nodes", wanted.ranks, known.ranks),
        ("train.device", wanted.device, known.device),
    ):
        if now != then:
            raise UserError(
                f"{key} = {now!r}: the job that trains this already was submitted with {then!r}; "
                "set it back, or end that job first"
            )
    return known


def submitted_elsewhere(folder: TrainingFolder, cluster: ClusterConfig) -> None:
    """Refuse to train what a job of an engine trains already, or will when its turn comes.

    Raises:
        UserError: If there is such a job, naming it.
    """
    record = _recorded(folder)
    name = str(record.get("engine", ""))
    engine = engine_of(cluster, name) if name in (SLURM, KUBERNETES) else None
    if engine is None:
        return
    if found := engine.find(str(record.get("name", ""))):
        raise UserError(
            f"cluster.engine = {cluster.engine!r}: {engine.title} {found} runs this training or "
            f"waits for its turn; set cluster.engine={name} to follow it, or end it first"
        )
    forget_submission(folder)


def forget_submission(folder: TrainingFolder) -> None:
    """Remove the record of a job that has ended."""
    _file(folder).unlink(missing_ok=True)


def _record(folder: TrainingFolder, **values: str) -> None:
    write_json(_file(folder), values)


def _recorded(folder: TrainingFolder) -> dict[str, Any]:
    try:
        found = read_json(_file(folder))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _file(folder: TrainingFolder) -> Path:
    return folder.path / "submission.json"


def _say(title: str, found: str, status: JobStatus) -> None:
    if status.phase in ("waiting", "running") and status.said:
        verb = "waits" if status.phase == "waiting" else "runs"
        print(f"  train: {title} {found} {verb}: {status.said}", flush=True)
