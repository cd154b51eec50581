"""DVC's cache as the store of versions: shared between work trees, kept in a remote."""

from __future__ import annotations

import shutil
from pathlib import Path

from dvc.fs import localfs
from dvc_data.hashfile import load
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_objects.errors import ObjectFormatError

from pipelines.errors import UserError
from pipelines.files import atomic_directory
from pipelines.versioning import REFUSALS, md5_of, one_line, open_repo


def share(home: Path, root: Path) -> None:
    """Let the checkout at `root` use the cache of the one at `home`, and its local settings.

    Raises:
        UserError: If either is no DVC repository, or its settings cannot be read.
    """
    try:
        with open_repo(home) as repo:
            settings = repo.config.load_one("local")
            settings.setdefault("cache", {})["dir"] = repo.cache.local_cache_dir
        with open_repo(root) as repo:
            if repo.config.load_one("local") == settings:
                return
            with repo.config.edit("local") as local:
                local.clear()
                local.update(settings)
    except REFUSALS as error:
        raise UserError(f"DVC: {one_line(error)}") from error


def keep(root: Path, folder: Path) -> str:
    """Put a folder that no stage makes into the cache, so that this state of it can be had back.

    Args:
        root: The checkout.
        folder: In it.

    Returns:
        DVC's hash of the folder, under which `dvc.lock` names it where a stage depends on it.

    Raises:
        UserError: If it cannot be read, or the disk is full.
    """
    try:
        with open_repo(root) as repo:
            store = repo.cache.local
            staging, _, found = build(store, str(folder), localfs, "md5", ignore=repo.dvcignore)
            transfer(staging, store, {found.hash_info}, shallow=False)
            return str(found.hash_info.value)
    except REFUSALS as error:
        raise UserError(f"DVC: {one_line(error)}") from error


def have_back(root: Path, folder: Path, kept: str) -> None:
    """Make a folder what it was when it was kept.

    Args:
        root: The checkout.
        folder: In it; replaced as a whole.
        kept: What `keep` returned, or `dvc.lock` says.

    Raises:
        UserError: If the cache has not all of it, or holds damaged files.
    """
    try:
        with open_repo(root) as repo:
            tree = load(repo.cache.local, HashInfo("md5", kept))
            with atomic_directory(folder) as made:
                for key, _, one in tree:
                    cached = Path(repo.cache.local.oid_to_path(one.value))
                    if md5_of(cached) != one.value:
                        raise UserError(f"{cached}: damaged in DVC's cache")
                    made.joinpath(*key).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(cached, made.joinpath(*key))
    except (FileNotFoundError, ObjectFormatError) as error:
        raise UserError(f"{folder}: {kept} is not whole in DVC's cache: {error}") from error
    except REFUSALS as error:
        raise UserError(f"DVC: {one_line(error)}") from error
