"""A small checkout of the project in a temporary folder, and its commands as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fork_server
from git_commands import commit_all, git

SOURCE = Path(__file__).parents[2]
SMALL = (
    "data.limit=400",
    "train.epochs=3",  # fewer learn nothing, which the gates refuse
    "train.width=4",
    "train.hidden=16",
    "train.batch=16",
    "train.warmup=2",
    "train.seed=1",  # seed 0 is not far enough from the floor after so few steps
    "verify.images=64",
    "gates.margin=0.1",
    "gates.latency=4",
)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Checkout:
    """A git repository with the project's files and a parameter file for seconds of work."""

    root: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment in which the checkout's own code and no other store is used."""
        others = ("PREFECT_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")  # a second start is quicker
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **more}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start `prong` with arguments."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", *arguments],
            cwd=self.root,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def prong(self, *arguments: str, **more: str) -> Done:
        """Run `prong` with arguments to its end."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=280)
        return Done(process.returncode, out, err)

    def forked(self, *arguments: str, **more: str) -> Done:
        """Run `prong` with arguments and the code of the tests; modules need not be imported."""
        ended = fork_server.start(
            _prong,
            *arguments,
            leaves=self.root.parent / "output",
            cwd=self.root,
            env=self.environment(**more),
        ).wait()
        return Done(ended.code, ended.out, ended.err)

    def run(self, *command: str, **more: str) -> Done:
        """Run another program in the checkout."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def repro(self, *stages: str) -> Done:
        """Run stages by DVC alone, as `make repro` does: the hashes of the code come first."""
        noted = self.run(sys.executable, "-m", "pipelines.systems.dvc.stage_code")
        return noted if noted.code else self.run("dvc", "repro", *stages)

    def run_states(self) -> list[str]:
        """Return how each MLflow run of the checkout's trainings stands."""
        program = (
            "import json, pathlib; from pipelines.core.paths import Layout;"
            "from pipelines.systems import mlflow as tracking;"
            "client = tracking.connect(Layout(pathlib.Path.cwd()));"
            "ids = [e.experiment_id for e in client.search_experiments()];"
            "print(json.dumps([r.info.status for r in client.search_runs(ids)]))"
        )
        done = self.run("python", "-c", program)
        assert done.code == 0, done.err
        states: list[str] = json.loads(done.out.splitlines()[-1])
        return states


def _prong(*arguments: str) -> None:
    from pipelines.cli import main

    sys.argv = ["prong", *arguments]
    main()


def make(root: Path) -> Checkout:
    """Copy the project to `root`, small, and commit it there."""
    root.mkdir(parents=True)
    bytecode = shutil.ignore_patterns("__pycache__")
    for name in ("prong", "pipelines"):
        shutil.copytree(SOURCE / name, root / name, ignore=bytecode)
    (root / ".dvc").mkdir()
    for name in ("raw", "added", "code", "start"):
        (root / "data" / name).mkdir(parents=True)
    for name in (
        "dvc.yaml",
        "params.yaml",
        ".dvcignore",
        ".gitignore",
        ".dvc/config",
        ".dvc/.gitignore",
        "data/raw/.gitkeep",
        "data/added/.gitkeep",
        "data/code/.gitkeep",
        "data/start/.gitkeep",
        "pyproject.toml",
    ):
        shutil.copy(SOURCE / name, root / name)
    from pipelines.core import params_file

    params_file.edit(root / "params.yaml", list(SMALL))
    checkout = Checkout(root)
    git(root, "init", "-q")
    commit_all(root, "start")
    return checkout
