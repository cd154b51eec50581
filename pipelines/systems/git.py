"""git: which commit a checkout is at, and branches written without touching its files.

Each command works on the repository of the directory it is given, whatever the environment says: a
hook of another repository exports variables that would send it there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipelines.core.environment import forget_repository
from pipelines.core.errors import Failed

_WHO = {
    "GIT_AUTHOR_NAME": "prong",
    "GIT_AUTHOR_EMAIL": "prong@localhost",
    "GIT_COMMITTER_NAME": "prong",
    "GIT_COMMITTER_EMAIL": "prong@localhost",
}


def run(
    root: Path,
    *arguments: str,
    content: bytes | None = None,
    keep_open: tuple[int, ...] = (),
    patience: float = 120,
) -> subprocess.CompletedProcess[bytes]:
    """Run git, whatever it answers.

    Args:
        root: A directory of the repository.
        arguments: Of git.
        content: Its standard input.
        keep_open: File descriptors that git holds on to.
        patience: Seconds.

    Raises:
        FileNotFoundError: If git is absent.
        subprocess.TimeoutExpired: If it takes longer.
    """
    env = {**_WHO, **os.environ}
    forget_repository(env)
    return subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**env, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        input=content,
        stdin=subprocess.DEVNULL if content is None else None,
        capture_output=True,
        check=False,
        timeout=patience,
        pass_fds=keep_open,
    )


def _run(
    root: Path, arguments: tuple[str, ...], content: bytes | None = None
) -> subprocess.CompletedProcess[bytes] | None:
    try:
        return run(root, *arguments, content=content)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None


def ask(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if it is absent, fails, or `root` is in no repository."""
    done = _run(root, arguments)
    return None if done is None or done.returncode else done.stdout.decode(errors="replace")


def tell(root: Path, *arguments: str, content: bytes | None = None) -> str:
    """Return what git prints when it must succeed, without white space around it.

    Args:
        root: A directory of the repository.
        arguments: Of git.
        content: Its standard input.

    Raises:
        Failed: If git is absent or says no.
    """
    done = _run(root, arguments, content)
    if done is None or done.returncode:
        said = "it is absent" if done is None else done.stderr.decode(errors="replace").strip()
        raise Failed(f"git {arguments[0]} in {root}: {said[:500]}")
    return done.stdout.decode(errors="replace").strip()


def tip(root: Path, branch: str) -> str | None:
    """Return the commit that a local branch names, or None if there is no such branch."""
    found = ask(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}")
    return found.strip() if found else None


def read(root: Path, commit: str, path: str) -> bytes | None:
    """Return a file's content as of a commit, or None if it is not there."""
    done = _run(root, ("cat-file", "blob", f"{commit}:{path}"))
    return None if done is None or done.returncode else done.stdout


def commit_files(
    root: Path, branch: str, files: Mapping[str, bytes], message: str, *, tries: int = 20
) -> str:
    """Add files to a branch in one commit; neither index nor work tree is touched.

    The branch moves only from the commit the files were added to: of two writers at once one
    tries again, and none is lost. Files that are there already make no commit.

    Args:
        root: A directory of the repository.
        branch: A local branch, made if absent.
        files: Path → content; other files of the branch stay.
        message: Of the commit.
        tries: How often to try when others write as well.

    Returns:
        The commit that holds the files.

    Raises:
        Failed: If git says no, or others are always faster.
    """
    blobs = {
        path: tell(root, "hash-object", "-w", "--stdin", content=content)
        for path, content in files.items()
    }
    for _ in range(tries):
        before = tip(root, branch)
        if before and all(_blob(root, before, path) == blob for path, blob in blobs.items()):
            return before
        tree = _tree(root, before, blobs)
        parents = ("-p", before) if before else ()
        made = tell(root, "commit-tree", tree, *parents, "-m", message)
        # An empty old value: the branch must not exist yet.
        moved = ask(root, "update-ref", f"refs/heads/{branch}", made, before or "")
        if moved is not None:
            return made
    raise Failed(f"git: branch {branch}: other writers were faster {tries} times; try again")


def _blob(root: Path, commit: str, path: str) -> str | None:
    found = ask(root, "rev-parse", "--verify", "--quiet", f"{commit}:{path}")
    return found.strip() if found else None


def _tree(root: Path, before: str | None, blobs: Mapping[str, str]) -> str:
    """Return a tree with the files of a commit and these; each path is FOLDER/NAME or NAME."""
    top = _entries(root, before) if before else {}
    folders: dict[str, dict[str, str]] = {}
    for path, blob in blobs.items():
        folder, _, name = path.rpartition("/")
        entry = f"100644 blob {blob}\t{name}"
        if not folder:
            top[name] = entry
            continue
        there = f"{before}:{folder}" if before and folder in top else None
        folders.setdefault(folder, _entries(root, there) if there else {})[name] = entry
    for folder, entries in folders.items():
        top[folder] = f"040000 tree {_make(root, entries)}\t{folder}"
    return _make(root, top)


def _entries(root: Path, tree: str) -> dict[str, str]:
    lines = tell(root, "ls-tree", "-z", tree).split("\0")
    return {line.partition("\t")[2]: line for line in lines if line}


def _make(root: Path, entries: Mapping[str, str]) -> str:
    text = "".join(f"{entries[name]}\0" for name in sorted(entries))
    return tell(root, "mktree", "-z", content=text.encode())
