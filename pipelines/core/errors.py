"""Errors that are not bugs of the program."""

from __future__ import annotations

import errno

_DISK = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would pass the size limit",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
}


class UserError(Exception):
    """A mistake or condition that the user can fix: one message, no traceback, exit code 2.

    The message names the key or file, the value found and what is allowed.
    """

    exit_code = 2


class Failed(Exception):
    """A child process crashed and its own output gives the reason: one line, exit code 1."""

    exit_code = 1


class Interrupted(Failed):
    """A child process was ended from outside; its finished work is kept."""


class Unavailable(UserError):
    """An outside system did not answer after retries; work already finished is kept."""


def disk_error(error: OSError) -> UserError | None:
    """Return `error` as a message for the user if the disk is the cause, else None."""
    reason = _DISK.get(error.errno or 0)
    if reason is None:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return UserError(f"cannot write: {reason}{where}; free space or choose another place and rerun")
