"""git with an author of its own, whatever the user's settings say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

AUTHOR = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")


def git(root: Path, *arguments: str) -> str:
    """Run a git command and return what it prints, without space around it."""
    done = subprocess.run(
        ["git", *AUTHOR, *arguments],
        cwd=root,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit_all(root: Path, message: str = "more") -> None:
    """Commit all that git does not ignore."""
    git(root, "add", "-A")
    git(root, "commit", "-qm", message)
