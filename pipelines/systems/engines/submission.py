"""What every engine can do: submit a command for several nodes, and say how it goes on.

A job outlives the process that submitted it. It is found again by its name, which its owner derives
from what the job is for, so that nothing is started twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Phase = Literal["waiting", "running", "ended", "unknown"]
How = Literal["", "done", "failed", "cancelled", "time", "memory", "lost", "never"]

SBATCH, TRAINJOB = "train.sbatch", "trainjob.yaml"
"""Names of the templates, here and in a project's folder `engines`."""
_PASSED = frozenset(
    (
        *("HOME", "LANG", "LD_LIBRARY_PATH", "LOGNAME", "MODULEPATH", "PATH", "PYTHONPATH"),
        *("SLURM_CONF", "TZ", "USER", "VIRTUAL_ENV"),
    )
)
_PASSED_PREFIXES = ("GLOO_", "LC_", "MKL_", "NCCL_", "OMP_", "TORCH_")


@dataclass(frozen=True)
class JobRequest:
    """A job to submit.

    Attributes:
        name: By which it is found again; letters, digits and `-`, at most 63.
        command: Program and arguments, run once on each node; torchrun, which starts the ranks.
        nodes: Number of machines.
        per_node: Ranks on each machine.
        processors: Processors of each rank.
        gpus: GPUs on each machine.
        folder: Working directory.
        log: File to which all that the nodes print is appended.
        env: Environment variables of the command.
        seen: A file that every node must see.
        saved: Folder whose last entry, by name, changes when the job's work is saved.
        template: The project's own template of what is submitted; None: the one of this package.
    """

    name: str
    command: tuple[str, ...]
    nodes: int
    per_node: int
    processors: int
    gpus: int
    folder: Path
    log: Path
    seen: Path
    saved: Path
    env: Mapping[str, str] = field(default_factory=dict)
    template: Path | None = None


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        phase: Waiting in the queue (also again), running, ended, or unknown to the engine.
        how: How it ended; of a waiting job `never` if it cannot start as it was submitted.
        said: The same for people: place in the queue, reason, names of the nodes.
    """

    phase: Phase
    how: How = ""
    said: str = ""


class Engine(Protocol):
    """Starts jobs on other machines.

    All methods raise `Unavailable` if the engine does not answer, and `UserError` if it refuses.
    """

    title: str
    """What messages call a job of it, such as `Slurm job`."""

    def submit(self, request: JobRequest) -> str:
        """Submit a job and return its id."""

    def find(self, name: str) -> str | None:
        """Return the id of the job with this name that waits or runs, or None."""

    def poll(self, job: str) -> JobStatus:
        """Return how a job stands."""

    def logs(self, job: str) -> str:
        """Return the last lines of what a job printed, as far as the engine itself keeps them."""

    def cancel(self, job: str) -> None:
        """End a job; one that has ended stays as it is."""


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a job gets of this process.

    No others, because an engine writes them down, and among them may be keys of stores that the
    ranks do not need. Not `CUDA_VISIBLE_DEVICES` either: a node says itself which devices it gives.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }


def own_template(root: Path, name: str) -> Path | None:
    """Return the project's template of this name, `engines/NAME`, or None if it has none."""
    path = root / "engines" / name
    return path if path.is_file() else None


def here() -> dict[str, str]:
    """Return `passed_on` of this process."""
    return passed_on(os.environ)
