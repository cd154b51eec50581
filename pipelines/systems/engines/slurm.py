"""Slurm: jobs by sbatch, their state by squeue, their end by scancel. Only this module calls them.

What the programs print is read field by field; anything else is an error of Slurm's, in its words.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.config import ClusterConfig
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.systems.engines.submission import SBATCH, How, JobRequest, JobStatus, here

_PATIENCE = 60.0  # seconds for one program of Slurm's
_SILENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed out|reset)"
    r"|transport endpoint|temporarily unable|resource temporarily unavailable|munge",
    re.I,
)
_UNKNOWN = re.compile(r"invalid job id", re.I)
_WAITING = frozenset(
    (
        *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
        *("SPECIAL_EXIT", "STOPPED", "SUSPENDED"),
    )
)
_RUNNING = frozenset(("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"))
_ENDS: dict[str, How] = {
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "TIMEOUT": "time",
    "DEADLINE": "time",
    "OUT_OF_MEMORY": "memory",
    "NODE_FAIL": "lost",
    "BOOT_FAIL": "lost",
    "PREEMPTED": "lost",
    "REVOKED": "lost",
}
_NEVER = re.compile(
    r"PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|BadConstraints|Invalid(Account|QOS)"
    r"|(Account|QOS)NotAllowed|MaxWallDurationPerJob|launch failed requeued held"
)
"""Reasons for which a job waits that do not pass by waiting."""
_FORMAT = "%i|%T|%P|%j|%N|%r"
_NODES = 12  # names of nodes that a message shows


@dataclass(frozen=True)
class _QueueLine:
    """A job, as squeue prints it."""

    job: str
    state: str
    partition: str
    name: str
    nodes: str
    reason: str

    @classmethod
    def parse(cls, text: str) -> _QueueLine:
        """Read a line of squeue in `_FORMAT`."""
        parts = text.split("|", 5)
        if len(parts) != 6 or not re.fullmatch(r"[0-9]{1,10}", parts[0]):
            raise Failed(f"Slurm: squeue printed {text[:200]!r}, which is no job")
        return cls(*(part.strip() for part in parts))


class Slurm:
    """Jobs of Slurm; see `Engine`."""

    title = "Slurm job"

    def __init__(self, cluster: ClusterConfig) -> None:
        """Remember partition and time limit."""
        self._cluster = cluster

    def submit(self, request: JobRequest) -> str:
        """Submit a batch job for `request.nodes` nodes and return its id.

        Raises:
            UserError: If Slurm refuses it, with Slurm's reason and the setting to change.
            Unavailable: If the controller does not answer, or takes no more jobs now.
        """
        template = request.template or Path(__file__).with_name(SBATCH)
        command = [
            *("sbatch", "--parsable", "--export=ALL", f"--job-name={request.name}"),
            *(f"--nodes={request.nodes}", "--ntasks-per-node=1"),
            f"--cpus-per-task={request.per_node * request.processors}",
            *(f"--output={_literal(request.log)}", f"--chdir={request.folder}"),
        ]
        if request.gpus:
            command.append(f"--gpus-per-node={request.gpus}")
        if self._cluster.queue:
            command.append(f"--partition={self._cluster.queue}")
        if self._cluster.minutes:
            command.append(f"--time={self._cluster.minutes}")
        env = {
            **here(),
            **request.env,
            "PRONG_SEEN": str(request.seen),
            "PRONG_SAVED": str(request.saved),
        }
        try:
            said = _ask([*command, str(template), *request.command], env)
        except Unavailable:
            # It may have been taken all the same, and the answer was lost.
            if job := self.find(request.name):
                return job
            raise
        except Failed as error:
            raise UserError(self._refused(str(error), request, template)) from None
        job = said.strip().partition(";")[0]
        if not re.fullmatch(r"[0-9]{1,10}", job):
            raise Failed(f"Slurm: sbatch printed {said[:200]!r}, which is no job id")
        return job

    def find(self, name: str) -> str | None:
        """Return the id of this user's job with this name that waits or runs, or None."""
        said = _ask(
            ["squeue", "--noheader", "--me", f"--name={name}", "--states=all", f"-o{_FORMAT}"]
        )
        lines = [_QueueLine.parse(line) for line in said.splitlines()]
        # One that is completing was cancelled, or has done its work.
        alive = [one for one in lines if one.state in _WAITING or one.state == "RUNNING"]
        return alive[-1].job if alive else None

    def poll(self, job: str) -> JobStatus:
        """Return how a job stands; `unknown` some minutes after its end, when Slurm forgets it."""
        try:
            said = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"-o{_FORMAT}"])
        except Failed as error:
            if _UNKNOWN.search(str(error)):
                return JobStatus("unknown")
            raise
        if not said.strip():
            return JobStatus("unknown")
        line = _QueueLine.parse(said.splitlines()[0])
        if line.state in _WAITING:
            never = _NEVER.search(line.reason) is not None
            return JobStatus("waiting", "never" if never else "", self._place(line))
        if line.state in _RUNNING:
            ending = line.state == "COMPLETING"  # its nodes become free one by one
            return JobStatus("running", "", "" if ending else f"on {_some(line.nodes)}")
        return JobStatus("ended", _ENDS.get(line.state, "failed"), f"{line.state} ({line.reason})")

    def logs(self, job: str) -> str:
        """Return nothing: what a job prints is in the file that its request names."""
        return ""

    def cancel(self, job: str) -> None:
        """End a job: SIGTERM to its ranks, SIGKILL after Slurm's `KillWait`."""
        try:
            _ask(["scancel", job])
        except Failed as error:
            if not _UNKNOWN.search(str(error)) and "already" not in str(error):
                raise

    def _place(self, line: _QueueLine) -> str:
        """Return a waiting job's place in the queue, and why it waits."""
        said = _ask(
            [
                *("squeue", "--noheader", "--states=PENDING", f"--partition={line.partition}"),
                *("--sort=-p,i", "-o%i"),
            ]
        )
        order = said.split()
        place = (
            f"place {order.index(line.job) + 1} of {len(order)} in partition {line.partition}"
            if line.job in order
            else f"partition {line.partition}"
        )
        known = line.reason not in ("", "None")  # Slurm has not looked at a new job yet
        return f"{place} ({line.reason})" if known else place

    def _refused(self, error: str, request: JobRequest, template: Path) -> str:
        """Return Slurm's reason for refusing a job, and which setting to change."""
        queue, minutes = self._cluster.queue, self._cluster.minutes
        if "partition" in error.lower():
            known = ", ".join(sorted(set(_ask(["sinfo", "--noheader", "-o%R"]).split())))
            return f"cluster.queue = {queue!r}: {error}; allowed: {known}, or '' for the default"
        if "time limit" in error.lower():
            return f"cluster.minutes = {minutes}: {error}"
        if "node count" in error.lower() or "node configuration" in error.lower():
            return (
                f"supervision.nodes = {request.nodes}, cluster.processors = "
                f"{request.processors}, train.processes = {request.per_node}: {error}"
            )
        if request.gpus and "gres" in error.lower():
            return (
                f"train.device = 'cuda', train.processes = {request.per_node}: {error}; "
                "`sinfo -o '%R %G'` shows the GPUs of each partition"
            )
        return f"cluster.engine = 'slurm': {error} (submitted was {template})"


def _literal(path: Path) -> str:
    """Return a path in which sbatch replaces nothing."""
    return str(path).replace("%", "%%")


def _some(nodes: str) -> str:
    names = nodes.split(",")
    return nodes if len(names) <= _NODES else f"{','.join(names[:_NODES])},… ({len(names)})"


def _ask(command: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Run one of Slurm's programs and return what it prints.

    Raises:
        UserError: If the program is absent.
        Unavailable: If the controller does not answer.
        Failed: If Slurm refuses, with its words.
    """
    given = here() if env is None else env
    try:
        done = subprocess.run(
            command,
            env={**given, "LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
        )
    except FileNotFoundError:
        raise UserError(
            f"cluster.engine = 'slurm': there is no program {command[0]!r} here; run prong where "
            "Slurm's client programs are, such as a login node, or set cluster.engine=local"
        ) from None
    except subprocess.TimeoutExpired as slow:
        # sbatch tries again for minutes while the controller takes no more jobs.
        text: bytes | str = slow.stderr or b""  # bytes, whatever was asked for
        said = _words(command[0], text if isinstance(text, str) else text.decode(errors="replace"))
        raise Unavailable(
            f"Slurm: {command[0]} did not end within {_PATIENCE:g} s{said and f': {said}'}"
        ) from None
    if done.returncode == 0:
        return done.stdout
    error = _words(command[0], done.stderr)
    if _SILENT.search(error):
        raise Unavailable(f"Slurm: {error}")
    raise Failed(f"Slurm: {error or f'{command[0]} ended with {done.returncode}'}")


def _words(program: str, text: str) -> str:
    """Return what a program of Slurm's wrote to stderr as one line."""
    lines = re.sub(rf"(?m)^{program}: (error: )?", "", text).splitlines()
    return "; ".join(dict.fromkeys(filter(None, map(str.strip, lines))))
