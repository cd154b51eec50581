"""Ranks as torchrun would start them, but one by one, so that a test knows each process.

Each can be given what a test wants beside `pipelines.training.rank`: another floating type, a loss
of every step, or a fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import fork_server
from fork_server import Forked

from pipelines.core.config import TrainConfig
from pipelines.systems.processes import kept
from pipelines.training.rank import Job
from pipelines.training.training_folder import TrainingFolder

if TYPE_CHECKING:
    from pipelines.training.loop import Loop

ROOT = Path(__file__).parents[2]


@dataclass
class RankProcesses:
    """The ranks of one training.

    Attributes:
        prepared: Directory of prepared images.
        folder: The training's folder.
        config: Its settings.
        ranks: How many.
        options: What they do besides: `float64`, `every` (log each step's loss), `hash` (write a
            hash of the state that must be equal on all ranks), `nudge` (change each initial weight
            by one bit), `little memory`, `little disk`.
        checkpoint: Steps between checkpoints.
        keep: Checkpoints that stay.
        more: Environment variables.
        timeout: Seconds without a sign after which a rank counts as hung.
        restarts: How often torchrun may start the ranks again.
    """

    prepared: Path
    folder: Path
    config: TrainConfig
    ranks: int = 1
    options: tuple[str, ...] = ()
    checkpoint: int = 1000
    keep: int = 2
    more: dict[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    restarts: int = 0

    @property
    def paths(self) -> TrainingFolder:
        """The folder's parts."""
        return TrainingFolder(self.folder)

    @property
    def leaves(self) -> Path:
        """Where processes leave what they print."""
        return self.folder.with_name(f"{self.folder.name} output")

    def write_job(self) -> Path:
        """Write what the ranks are told and return the file."""
        self.paths.signs.mkdir(parents=True, exist_ok=True)
        job = Job(
            config=self.config,
            prepared=str(self.prepared),
            folder=str(self.folder),
            device="cpu",
            threads=1,
            checkpoint=self.checkpoint,
            keep=self.keep,
            timeout=self.timeout,
            ranks=self.ranks,
            attempt="test",
        )
        job.write(self.paths.job)
        return self.paths.job

    def start(self) -> list[Forked]:
        """Start every rank."""
        path = self.write_job()
        port = free_port()
        return [self._start(path, rank, port) for rank in range(self.ranks)]

    def _start(self, path: Path, rank: int, port: int) -> Forked:
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **self.more,
        }
        return fork_server.start(
            run_rank, path, self.options, leaves=self.leaves, cwd=ROOT, env=kept(env), exits=True
        )

    def supervised(self) -> Forked:
        """Start a process that supervises the ranks under torchrun, as the stage does."""
        arguments, env = (self.write_job(), self.restarts), {**os.environ, **self.more}
        return fork_server.start(
            run_supervisor, *arguments, leaves=self.leaves, cwd=ROOT, env=env, exits=True
        )

    def run(self, seconds: float = 240) -> list[int]:
        """Run every rank to its end and return the exit codes."""
        started = self.start()
        try:
            ended = [process.wait(seconds) for process in started]
        finally:
            for process in started:
                process.kill()
        self.output = [one.output for one in ended]
        return [one.code for one in ended]

    def train(self) -> bytes:
        """Run to a good end and return the bytes of the trained network."""
        codes = self.run()
        assert codes == [0] * self.ranks, "\n".join(self.output)
        return self.weights()

    def weights(self) -> bytes:
        """Return the bytes of the trained network."""
        return (self.paths.network / "network.safetensors").read_bytes()

    def another(self, folder: str, **changes: object) -> RankProcesses:
        """Return the ranks of a training in another folder beside this one."""
        return replace(self, folder=self.folder.with_name(folder), **changes)  # type: ignore[arg-type]


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_supervisor(path: Path, restarts: int) -> int:
    """Supervise the ranks of a job in the present process; return its exit code."""
    from pipelines.core.errors import Failed, Interrupted, UserError
    from pipelines.systems.processes import exit_on_sigterm
    from pipelines.training.supervision import Machines, supervise

    exit_on_sigterm()
    job = Job.read(path)
    folder = TrainingFolder(path.parent)
    try:
        supervise(job, folder, Machines(job.ranks), root=ROOT, restarts=restarts, tick=lambda: None)
    except (UserError, Failed, Interrupted) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 0


def run_rank(job: Path, options: tuple[str, ...]) -> int:
    """Be one rank in the present process; return its exit code."""
    from pipelines.training import rank

    if "little memory" in options:
        import resource

        import torch  # what it maps is not the training's

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**31, mapped + 2**31))
    if "little disk" in options:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    if "float64" in options:
        import torch

        torch.set_default_dtype(torch.float64)
    if "every" in options:
        from pipelines.training import loop

        loop.LOG_EVERY = 1
    if "nudge" in options:
        _nudge()
    if "hash" in options:
        _leave_hash(job.parent)
    return rank.main(job)


def _nudge() -> None:
    """Change every weight that training begins with in its last bit."""
    import torch

    from pipelines.training import network

    plain = network.plain

    def nudged(spec: network.NetworkSpec, checkout: Path | None = None) -> network.Network:
        made = plain(spec, checkout)
        with torch.no_grad():
            for weight in made.parameters():
                weight.copy_(torch.nextafter(weight, 2 * weight))
        return made

    network.plain = nudged


def _leave_hash(folder: Path) -> None:
    """Let the rank write what it holds when it has finished."""
    from pipelines.training.rank import AfterStep

    save = AfterStep.save

    def and_hash(self: AfterStep, loop: Loop, *, finished: bool = False) -> None:
        save(self, loop, finished=finished)
        if finished:
            digest = hashlib.sha256()
            state = loop.state()
            for part in ("network", "optimizer"):
                for name, value in sorted(state.shared[part].items()):
                    if loop.config.batch_norm == "rank" and "running" in name:
                        continue
                    digest.update(f"{name} {tuple(value.shape)}".encode())
                    digest.update(value.detach().cpu().contiguous().numpy().tobytes())
            digest.update(json.dumps(state.meta["optimizer"], sort_keys=True).encode())
            (folder / f"hash-{loop.ranks.rank}").write_text(digest.hexdigest())

    AfterStep.save = and_hash  # type: ignore[method-assign]
