"""Starts, supervises and ends the ranks of a training under torchrun.

torchrun starts each rank in its own session, so ending torchrun's process group is not enough. The
ranks are known from their heartbeats and are ended by process id.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.core.errors import Failed, Interrupted, UserError
from pipelines.core.waiting import wait_until
from pipelines.systems.processes import run_group
from pipelines.training import heartbeat
from pipelines.training.agent import exit_codes
from pipelines.training.heartbeat import RankStatus
from pipelines.training.rank import Job
from pipelines.training.training_folder import TrainingFolder

GRACE = 6.0
"""Seconds that ranks have for their last checkpoint before SIGKILL."""
_ANSWER = 2.0  # seconds that a hung rank has to write its stack
_ORDER = ("loading", "joining", "loading data", "initialising", "training", "evaluating", "saving")
_NEWS = 1500  # characters of a stack or log that a message shows


@dataclass(frozen=True)
class Machines:
    """The ranks to start on this machine.

    Attributes:
        processes: Ranks on this machine.
        nodes: Number of machines.
        rendezvous: host:port of the first machine; empty for a single machine.
        first: Whether this machine runs the stage, and so rank 0.
        elsewhere: Whether an engine starts the ranks, on nodes that it chooses.
    """

    processes: int
    nodes: int = 1
    rendezvous: str = ""
    first: bool = True
    elsewhere: bool = False


def supervise(
    job: Job,
    folder: TrainingFolder,
    machines: Machines,
    *,
    root: Path,
    restarts: int,
    tick: Callable[[], None],
) -> None:
    """Run the ranks of a job until they end.

    Args:
        job: The job of the ranks; already written to the folder.
        folder: The training's folder.
        machines: The ranks to start on this machine.
        root: The checkout.
        restarts: How often the ranks may be started again after one failed.
        tick: Called about ten times a second.

    Raises:
        UserError: If a rank reports an error in a setting or the data, or a lack of memory.
        Interrupted: If the ranks were stopped, but not by this process.
        Failed: If a rank crashed, was killed, or hung; the message begins with its error.
    """
    watch = Watch(folder, job.timeout, machines.nodes)

    def both() -> None:
        tick()
        watch()

    hung: Hung | None = None
    code = 0
    try:
        code = run_group(
            agent_command(job, folder, machines, restarts, int(GRACE) - 1),
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"},
            tick=both,
            output=folder.log,
            grace=GRACE,
        )
    except Hung as found:
        hung = found
    finally:
        end_ranks(folder, GRACE)
        tick()
    if hung:
        raise Failed(hung.message)
    if code:
        raise failure(job, folder, code)


def agent_command(
    job: Job, folder: TrainingFolder, machines: Machines, restarts: int, saving: int
) -> list[str]:
    """Return the command that starts the ranks of one machine.

    Args:
        job: The job of the ranks.
        folder: The training's folder.
        machines: The ranks on each machine.
        restarts: How often the ranks may be started again after one failed.
        saving: Seconds that ranks have for their last checkpoint when they are told to end.
    """
    command = [sys.executable, "-m", "pipelines.training.agent", str(_codes(folder))]
    command += ["--nnodes", str(machines.nodes), "--nproc-per-node", str(machines.processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", job.attempt]
    if not machines.elsewhere:  # otherwise each node is told by its environment
        command += ["--rdzv-endpoint", machines.rendezvous or "127.0.0.1:0"]
    if machines.nodes > 1 and not machines.elsewhere:
        # Names may resolve to an address that this machine does not know as its own.
        conf = f"is_host={int(machines.first)},join_timeout={int(job.timeout)}"
        command += ["--rdzv-conf", conf]
    command += ["--log-dir", str(_logs(folder))]  # otherwise a folder stays in /tmp
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    command += ["--shutdown-timeout", str(saving)]
    return [*command, "-m", "pipelines.training.rank", str(folder.job)]


def end_ranks(folder: TrainingFolder, grace: float) -> None:
    """Make sure that no rank of this machine is left: SIGTERM, up to `grace` seconds, SIGKILL."""
    left = [sign for sign in heartbeat.signs(folder.signs) if sign.alive]
    for sign in left:
        sign.send(signal.SIGTERM)
        sign.send(signal.SIGCONT)  # a stopped process does not receive it
    wait_until(lambda: not any(sign.alive for sign in left), grace)
    for sign in left:
        sign.send(signal.SIGKILL)
    while any(sign.alive for sign in left):  # the kernel takes a moment
        time.sleep(0.02)


class Hung(Exception):
    """A rank gave no heartbeat for too long.

    Attributes:
        message: The rank, since when, and its stack.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Watch:
    """Detects a rank that gives no heartbeat while others wait for it."""

    def __init__(self, folder: TrainingFolder, timeout: float, nodes: int = 1) -> None:
        self._folder, self._timeout, self._nodes = folder, timeout, nodes
        self._seen: dict[int, tuple[RankStatus, float]] = {}
        self._start = time.monotonic()

    def __call__(self) -> None:
        """Raise `Hung` if no rank has made progress for `timeout` seconds.

        A hung rank soon stops all others, which wait for it in the next collective. It is the rank
        that is furthest behind, or that does not write its stack on request.
        """
        now = time.monotonic()
        for sign in heartbeat.signs(self._folder.signs):
            before = self._seen.get(sign.rank)
            if before is None or before[0] != sign:
                self._seen[sign.rank] = sign, now
        at_work = [(s, t) for s, t in self._seen.values() if s.phase != "ended"]
        if self._seen and not at_work:
            return
        if now - max([self._start, *(t for _, t in at_work)]) < self._timeout:
            return
        if not at_work:
            said = f"no rank gave a heartbeat for {self._timeout:g} s (supervision.timeout)"
            if self._nodes > 1:
                said += f"; do {self._nodes - 1} other machines run `prong join`?"
            raise Hung(said)
        raise Hung(self._accuse([sign for sign, _ in at_work]))

    def _accuse(self, ranks: list[RankStatus]) -> str:
        for sign in ranks:
            sign.send(signal.SIGUSR1)
        stacks: dict[int, str] = {}

        def all_answered() -> bool:
            for sign in ranks:
                if text := heartbeat.stack(self._folder.signs, sign):
                    stacks[sign.rank] = text
            return len(stacks) == len(ranks)

        wait_until(all_answered, _ANSWER, pause=0.1)
        silent = [sign for sign in ranks if sign.here and sign.rank not in stacks]
        behind = min(ranks, key=lambda sign: (sign.step, _order(sign.phase)))
        suspect = silent[0] if silent else behind
        where = (
            "it does not respond, like a stopped process"
            if suspect in silent
            else f"it was in\n{stacks.get(suspect.rank, '')[-_NEWS:].rstrip()}"
        )
        return (
            f"rank {suspect.rank} hung: no heartbeat for {self._timeout:g} s "
            f"(supervision.timeout), {suspect.phase} at step {suspect.step}; {where}"
        )


def _order(phase: str) -> int:
    return _ORDER.index(phase) if phase in _ORDER else 0


def failure(job: Job, folder: TrainingFolder, code: int) -> Exception:
    """Return the exception for ranks that ended with an error, with the first cause first."""
    ends = heartbeat.ends(folder.signs)
    errors = sorted((e for e in ends.values() if e["how"] == "error"), key=lambda e: e["time"])
    told = [e for e in errors if e["kind"] == "user"]
    if told:
        return UserError(str(told[0]["message"]))
    # Ranks that lost a peer have another kind of error; the crashed peer is the cause.
    crashed = [e for e in errors if e["kind"] == "crash"]
    if crashed:
        return Failed(f"{_place(crashed[0], job)}: {crashed[0]['message']}\n{_trace(crashed[0])}")
    silent = [s for s in heartbeat.signs(folder.signs) if s.rank not in ends and s.phase != "ended"]
    if silent:
        return Failed(_killed(silent[0], job, folder))
    stopped = [e for e in ends.values() if e["how"] == "stopped"]
    if stopped and not errors:
        step = max(int(e["step"]) for e in stopped)
        return Interrupted(
            f"the ranks were stopped at step {step}; the same command continues from there"
        )
    if errors:
        return Failed(f"{_place(errors[0], job)}: {errors[0]['message']}\n{_trace(errors[0])}")
    return Failed(
        f"torchrun ended with exit code {code} before a rank reported anything\n{_tail(folder)}"
    )


def _killed(sign: RankStatus, job: Job, folder: TrainingFolder) -> str:
    code = exit_codes(_codes(folder)).get(sign.rank)
    said = (
        f"rank {sign.rank} of {job.ranks} died without an error message, "
        f"{sign.phase} at step {sign.step}"
    )
    if code is not None and code < 0:
        said += f" (signal {signal.Signals(-code).name})"
    if code in (None, -signal.SIGKILL):
        config = job.config
        said += (
            "; the kernel ends processes in this way when memory runs out: lower train.batch "
            f"(now {config.batch}) or raise train.accumulate (now {config.accumulate})"
        )
    return said


def _place(end: dict[str, Any], job: Job) -> str:
    return f"rank {end['rank']} of {job.ranks} failed, {end['phase']} at step {end['step']}"


def _trace(end: dict[str, Any]) -> str:
    return str(end.get("traceback", "")).rstrip()


def _tail(folder: TrainingFolder) -> str:
    if not folder.log.is_file():
        return ""
    return folder.log.read_text(encoding="utf-8", errors="replace")[-_NEWS:].rstrip()


def _codes(folder: TrainingFolder) -> Path:
    """Return the file in which the agent writes how the ranks ended."""
    return folder.signs / "exit-codes.json"


def _logs(folder: TrainingFolder) -> Path:
    """Return the folder for torchrun's own log folders, one for each attempt."""
    return folder.path / "logs"


def without_signs(folder: TrainingFolder) -> None:
    """Remove heartbeats and records of an earlier attempt, whose ranks have ended."""
    for path in folder.signs.iterdir():
        path.unlink()
    folder.log.unlink(missing_ok=True)
    shutil.rmtree(_logs(folder), ignore_errors=True)
