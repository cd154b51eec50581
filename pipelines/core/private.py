"""Folders and files that no other user of the machine may read or change."""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import tempfile
from pathlib import Path

from pipelines.core.errors import UserError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; take from one that exists the others' rights.

    Args:
        path: The folder; parents are made as usual.

    Raises:
        UserError: If another user owns it, it is no folder, or the file system keeps no rights.
        OSError: If it cannot be made or changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise UserError(f"{path}: not a folder; move it away") from None
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(folder)
        _check_owner(path, found.st_uid)
        if found.st_mode & _OTHERS and _writable(folder):
            os.fchmod(folder, found.st_mode & stat.S_IRWXU)
            _check_rights(path, os.fstat(folder).st_mode)
    finally:
        os.close(folder)


def others_may_write(path: Path) -> bool:
    """Say whether another user owns a file or folder or may change it; not if it is absent."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid != os.geteuid() or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def private_text(path: Path, begins: str = "") -> str:
    """Return the text of a file that only its owner may read; made of random letters if absent.

    Two processes that make it at once agree on one text.

    Args:
        path: The file, of one line.
        begins: What comes before the random letters when it is made.

    Returns:
        What it holds, without white space around it; if it was made, 256 random bits.

    Raises:
        UserError: If another user owns it or may read it, or it is empty.
        OSError: If it cannot be made or read.
    """
    if not path.exists():
        private_folder(path.parent)
        _make(path, begins)
    with path.open(encoding="utf-8") as file:
        found = os.fstat(file.fileno())
        _check_owner(path, found.st_uid)
        _check_rights(path, found.st_mode)
        text = file.read().strip()
    if not text:
        raise UserError(f"{path}: empty; delete it, and the next command makes it anew")
    return text


def _make(path: Path, begins: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{begins}{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces what another has made
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)


def _writable(descriptor: int) -> bool:
    """Say whether the file system takes changes at all, of this user or another."""
    return not os.fstatvfs(descriptor).f_flag & os.ST_RDONLY


def _check_owner(path: Path, owner: int) -> None:
    if owner != os.geteuid():
        raise UserError(
            f"{path}: belongs to {_name(owner)}; what it holds is trusted and run, so it must "
            f"belong to {_name(os.geteuid())}, who runs this command: `sudo chown -R` it, or work "
            "in a checkout of your own"
        )


def _check_rights(path: Path, mode: int) -> None:
    if mode & _OTHERS:
        raise UserError(
            f"{path}: other users may read it (mode {stat.S_IMODE(mode):04o}); allowed: its owner "
            "alone. Delete it, and the next command makes it anew; if it is then the same again, "
            "the file system keeps no access rights: use a checkout on another"
        )


def _name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
