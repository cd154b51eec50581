"""Working trees of scheduled runs: one per deployment, code and parameters, until it is finished.

A run in a tree of its own neither waits for the checkout nor disturbs it; all trees share the
checkout's DVC cache, so that what one has made is restored in the next.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pipelines import config
from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.files import sha256_json, write_text
from pipelines.layout import Layout


def worktree(layout: Layout, *, deployment: str, params: Params, commit: str) -> Layout:
    """Return the working tree of a deployment for a commit and parameters, made if it is absent.

    Args:
        layout: The checkout.
        deployment: Whose runs use it.
        params: What its `params.yaml` holds; `data.path` becomes absolute.
        commit: The code.

    Raises:
        UserError: If git cannot make it.
    """
    key = sha256_json([deployment, commit, params.hash()])[:16]
    tree = Layout(layout.state / "worktrees" / f"{deployment}-{key}")
    whole = tree.root / ".dvc/config.local"  # written last
    if whole.is_file():
        return tree
    if tree.root.exists():
        finish(tree)
    _git(layout.root, "worktree", "prune")
    _git(layout.root, "worktree", "add", "--quiet", "--detach", str(tree.root), commit)
    shutil.copyfile(layout.params, tree.params)
    config.edit(tree.params, [f"data.path={layout.root / params.data.path}"])
    layout.downloads.mkdir(parents=True, exist_ok=True)
    tree.downloads.symlink_to(layout.downloads)
    write_text(whole, f"[cache]\n    dir = {layout.root / '.dvc/cache'}\n")
    return tree


def finish(layout: Layout) -> None:
    """Remove a working tree; what DVC made in it stays in the shared cache."""
    shutil.rmtree(layout.root)


def _git(root: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise UserError(f"{root}: git {arguments[0]} {arguments[1]} failed: {said}")
