"""Slurm on loopback: one controller and two node daemons with a configuration of their own.

Both nodes are this machine under two names. Everything lies in one folder, and every process is
ended by its id.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rank_processes import free_port

from pipelines.core.waiting import wait_until

_SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
PROGRAMS = {name: shutil.which(name, path=_SEARCH) for name in _NEEDED}
MISSING = ", ".join(name for name, path in PROGRAMS.items() if path is None)
"""Programs of Slurm that are absent; empty if the cluster can be started."""
NODES = ("one", "two")
MOST = 40
"""Jobs that the controller knows at most, those that ended minutes ago among them."""
_CONFIG = """\
ClusterName=prong
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
MaxJobCount={most}
KillWait=20
OverTimeLimit=1
InactiveLimit=0
ReturnToService=2
{nodes}
PartitionName=main Nodes=one,two Default=YES MaxTime=60 State=UP
PartitionName=short Nodes=one,two MaxTime=1 State=UP
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster.

    Attributes:
        folder: Everything that it writes.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which Slurm's programs find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Run one of Slurm's programs and return what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, states: str = "PD,R,CG") -> list[list[str]]:
        """Return id, state, reason and name of jobs."""
        found = self.ask("squeue", "--noheader", f"--states={states}", "-o%i|%T|%r|%j")
        return [line.split("|") for line in found.splitlines()]

    def sleeper(self, *options: str) -> str:
        """Submit a job that only occupies nodes; return its id."""
        said = self.ask(
            "sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", "exec sleep 600"
        )
        return said.strip()

    def empty(self) -> None:
        """Cancel every job and wait until no node works."""
        self.ask("scancel", "--me")
        assert wait_until(lambda: not self.jobs(), 60, pause=0.3), self.jobs()

    def log(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log")))


@contextmanager
def started(folder: Path) -> Iterator[SlurmCluster]:
    """Start munge, the controller and the nodes; end them all."""
    munge = folder / "munge"
    for place in (munge, folder / "state", *(folder / "spool" / name for name in NODES)):
        place.mkdir(parents=True)
    (munge / "key").write_bytes(secrets.token_bytes(128))
    (munge / "key").chmod(0o400)
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={free_port()} CPUs=2"
        for name in NODES
    )
    user = pwd.getpwuid(os.geteuid()).pw_name
    config = _CONFIG.format(port=free_port(), user=user, folder=folder, nodes=nodes, most=MOST)
    (folder / "slurm.conf").write_text(config)
    cluster = SlurmCluster(folder)
    with ExitStack() as stack:

        def daemon(*command: str) -> None:
            out = stack.enter_context((folder / f"{Path(command[0]).name}.out").open("ab"))
            process = subprocess.Popen(
                command, env={**os.environ, **cluster.environment}, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, process)

        daemon(
            str(PROGRAMS["munged"]), "--foreground", "--force", f"--key-file={munge}/key",
            f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
            f"--seed-file={munge}/seed",
        )  # fmt: skip
        assert wait_until((munge / "socket").exists, 20), (munge / "log").read_text()
        daemon(str(PROGRAMS["slurmctld"]), "-D", "-i")
        for name in NODES:
            daemon(str(PROGRAMS["slurmd"]), "-D", "-N", name)

        def idle() -> bool:
            done = subprocess.run(
                ["sinfo", "--noheader", "--partition=main", "-o%D %T"], capture_output=True,
                text=True, check=False, env={**os.environ, **cluster.environment},
            )  # fmt: skip
            return done.stdout.split() == ["2", "idle"]

        assert wait_until(idle, 30, pause=0.2), cluster.log()
        try:
            yield cluster
        finally:
            cluster.empty()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
