"""`make setup` says in one line what is missing, and is done at once when all is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "scripts/setup.sh"
TOOLS = ("dirname", "sha256sum", "cat", "rm", "sh", "env")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project folder of which only what the script reads is there."""
    root = tmp_path / "a checkout"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SETUP, root / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).write_text("")
    return root


def _tools(folder: Path, *more: str) -> Path:
    """Return a directory in which only some programs are found."""
    folder.mkdir()
    for name in (*TOOLS, *more):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _setup(checkout: Path, tools: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(checkout / "scripts/setup.sh")],
        env={"PATH": str(tools), **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_python(checkout: Path, tmp_path: Path) -> None:
    done = _setup(checkout, _tools(tmp_path / "bin", "git"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "make setup: Python 3.11 or later is missing: apt-get install python3 python3-venv"
    ]


def test_a_python_that_is_too_old(checkout: Path, tmp_path: Path) -> None:
    tools = _tools(tmp_path / "bin", "git")
    _script(tools / "python3.9", "exit 1")
    done = _setup(checkout, tools, PYTHON="python3.9")
    assert done.returncode == 2
    assert "PYTHON=python3.9 is not a Python of version 3.11 or later" in done.stderr


def test_no_git(checkout: Path, tmp_path: Path) -> None:
    tools = _tools(tmp_path / "bin")
    _script(tools / "python3", f'exec {sys.executable} "$@"')
    done = _setup(checkout, tools)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["make setup: git is missing: apt-get install git"]


def test_no_venv(checkout: Path, tmp_path: Path) -> None:
    tools = _tools(tmp_path / "bin", "git")
    _script(
        tools / "python3",
        f'case "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"',
    )
    done = _setup(checkout, tools)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "make setup: python3-venv is missing: apt-get install python3-venv"
    ]
    assert not (checkout / ".venv").exists()


def test_what_is_up_to_date_is_left_alone_and_a_changed_lock_is_not(
    checkout: Path, tmp_path: Path
) -> None:
    tools = _tools(tmp_path / "bin", "git")
    calls = tmp_path / "calls"
    # Stands for an interpreter that makes environments: what is tested is when it is asked to.
    _script(
        tools / "python3",
        f'case "$1 $2" in "-m venv") echo venv >>"{calls}"; /bin/mkdir -p "$3/bin";'
        f' /bin/ln -sf "{tools}/python3" "$3/bin/python"; exit 0;;'
        f' "-m pip") echo pip >>"{calls}"; exit 0;; esac\nexec {sys.executable} "$@"',
    )

    def made() -> list[str]:
        done = _setup(checkout, tools)
        assert done.returncode == 0, done.stderr
        return calls.read_text().split()

    first = made()
    assert "pip" in first
    assert made() == first
    (checkout / "constraints.txt").write_text("torch==2.13.0")
    assert len(made()) > len(first)


def test_the_lock_pins_every_package_for_cpu_and_cuda_alike() -> None:
    lines = (SETUP.parents[1] / "constraints.txt").read_text().split()
    assert "torch==2.13.0" in lines
    assert [line for line in lines if "==" not in line or "+" in line] == []
    assert not any(line.startswith("nvidia-") for line in lines)
    assert os.access(SETUP, os.X_OK)
