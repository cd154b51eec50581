"""The branch `prong-releases`: of each registered version its `dvc.lock` and `params.yaml`.

What a version was made from outlives the checkout that made it: `git push` takes the branch along
like any other. A folder per model and version, one commit each.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.core.errors import Failed
from pipelines.core.paths import Layout
from pipelines.systems import git

BRANCH = "prong-releases"
FILES = ("dvc.lock", "params.yaml")


def folder(model: str, version: int) -> str:
    """Return where on the branch the files of a version lie."""
    return f"{model}-v{version}"


def keep(layout: Layout, model: str, version: int, sha256: str) -> str | None:
    """Keep the checkout's lock and parameters as those of a version.

    Args:
        layout: The checkout that made the version.
        model: The registered model's name.
        version: Its number.
        sha256: Of the ONNX file.

    Returns:
        The commit, or None where there is no git or no lock: then the copies that lie beside the
        model in the registry must do.
    """
    paths = {name: layout.root / name for name in FILES}
    if git.ask(layout.root, "rev-parse", "--git-dir") is None or not paths[FILES[0]].is_file():
        return None
    where = folder(model, version)
    files = {f"{where}/{name}": path.read_bytes() for name, path in paths.items() if path.is_file()}
    try:
        return git.commit_files(
            layout.root, BRANCH, files, f"{model} version {version}\n\nonnx sha256 {sha256}"
        )
    except Failed:
        if not _writable(layout.root):
            return None  # a checkout that may only be read: the copies in the registry must do
        raise


def _writable(root: Path) -> bool:
    place = git.ask(root, "rev-parse", "--git-common-dir")
    return place is not None and os.access(root / place.strip(), os.W_OK)


def kept(layout: Layout, model: str, version: int, name: str) -> bytes | None:
    """Return a version's file from the branch, or None if it is not there."""
    commit = git.tip(layout.root, BRANCH)
    return git.read(layout.root, commit, f"{folder(model, version)}/{name}") if commit else None
