"""DVC's cache as the store of versions: shared between work trees, kept in a remote."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from dvc.fs import localfs
from dvc_data.hashfile import load
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_objects.errors import ObjectFormatError

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import atomic_directory
from pipelines.systems.dvc.reproduce import REFUSALS, REMOTE, md5_of, one_line, open_repo, patiently


def share(home: Path, root: Path, remote: str) -> None:
    """Let the checkout at `root` use the cache of the one at `home`, and its local settings.

    Args:
        home: The checkout that has them; `root` itself to set its remote alone.
        root: The checkout that is to use them.
        remote: `store.remote`; a relative folder is relative to `home`.

    Raises:
        UserError: If either is not a DVC repository, or its settings cannot be read.
    """
    try:
        with open_repo(home) as repo:
            settings = repo.config.load_one("local")
            cache = repo.cache.local_cache_dir
        if home != root:
            settings.setdefault("cache", {})["dir"] = cache
        _set_remote(settings, home, remote)
        for name in ("remote", "machine", "db"):  # DVC asks for each when it writes
            settings.setdefault(name, {})
        with open_repo(root) as repo:
            found = repo.config.load_one("local")
            if _filled(found) == _filled(settings):
                return
            with repo.config.edit("local") as local:
                local.clear()
                local.update(settings)
    except REFUSALS as error:
        raise UserError(f"DVC: {one_line(error)}") from error


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in settings.items() if values}


def _set_remote(settings: dict[str, Any], home: Path, remote: str) -> None:
    remotes, core = settings.setdefault("remote", {}), settings.setdefault("core", {})
    remotes.pop(REMOTE, None)
    if core.get("remote") == REMOTE:
        del core["remote"]
    if not remote:
        return
    core["remote"] = REMOTE
    if not remote.startswith("s3://"):
        remotes[REMOTE] = {"url": str(home / Path(remote).expanduser())}
        return
    remotes[REMOTE] = {"url": remote}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        remotes[REMOTE]["endpointurl"] = endpoint


def push(root: Path, folder: Path) -> bool:
    """Copy to the remote what it lacks: results, remembered runs, and a folder that is kept.

    Args:
        root: The checkout; `share` has set its remote.
        folder: See `keep`.

    Returns:
        Whether there is a remote.

    Raises:
        Unavailable: If the remote does not take it.
        UserError: If another run keeps the checkout busy.
    """
    with open_repo(root) as repo:
        url = repo.config["remote"].get(REMOTE, {}).get("url")
    if not url:
        return False
    kept = HashInfo("md5", keep(root, folder))

    def act() -> None:
        with open_repo(root) as repo:
            repo.push(remote=REMOTE, run_cache=True)
            tree = load(repo.cache.local, kept)
            objects = {kept, *(one for _, _, one in tree)}
            if repo.cloud.push(objects, remote=REMOTE).failed:
                raise Unavailable(f"store.remote = {url!r}: not all of {folder} was taken")

    try:
        patiently(root, act)
    except UserError:
        raise
    except Exception as error:  # a store's client raises almost anything
        raise Unavailable(f"store.remote = {url!r}: {one_line(error)}") from error
    return True


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


def _pull(repo: Any, wanted: HashInfo) -> None:
    """Copy a kept folder from the remote into the cache, as far as the remote has it."""
    try:
        repo.cloud.pull({wanted}, remote=REMOTE)
        tree = load(repo.cache.local, wanted)
        repo.cloud.pull({one for _, _, one in tree}, remote=REMOTE)
    except (*REFUSALS, FileNotFoundError, ObjectFormatError):
        raise
    except Exception as error:  # a store's client raises almost anything
        url = repo.config["remote"][REMOTE]["url"]
        raise Unavailable(f"store.remote = {url!r}: {one_line(error)}") from error


def restore_added(root: Path, folder: Path, kept: str) -> None:
    """Make a folder what it was when it was kept.

    Args:
        root: The checkout.
        folder: In it; replaced as a whole.
        kept: What `keep` returned, or `dvc.lock` says.

    Raises:
        UserError: If cache and remote have not all of it, or the cache holds damaged files.
        Unavailable: If the remote does not answer.
    """
    try:
        with open_repo(root) as repo:
            wanted = HashInfo("md5", kept)
            if REMOTE in repo.config["remote"]:
                _pull(repo, wanted)
            tree = load(repo.cache.local, wanted)
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
