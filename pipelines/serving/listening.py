"""Where the server listens, and the key that it asks for."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from pipelines.core.errors import UserError

_BACKLOG = 2048
_LONGEST_KEY = 4096


def listen(host: str, port: int, *, keyed: bool) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or address of this machine.
        port: 0: any free one.
        keyed: Whether each request must bring a key; without one only loopback is listened on.

    Raises:
        UserError: If the address is not loopback and no key is asked for, is none of this
            machine's, or the port is busy or not this user's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host!r}: no address has that name") from None
    if not keyed and not is_loopback(str(address[0])):
        raise UserError(
            f"--host {host!r}: others could reach the server; allowed without --api-key-file: "
            "127.0.0.1, localhost and ::1"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"--port {port}: another program listens there; --port 0 takes any free one"
        elif error.errno == errno.EACCES:
            said = f"--port {port}: not allowed to this user; allowed: 1024 and above, or 0"
        elif error.errno == errno.EADDRNOTAVAIL:
            said = f"--host {host!r}: not an address of this machine"
        else:
            raise
        raise UserError(said) from None


def is_loopback(address: str) -> bool:
    """Say whether an address reaches this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Return where a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_key(path: Path) -> bytes:
    """Return the key in a file that nobody else may read.

    Its group may read it if root owns it: so a container's secrets come to a user that is not root.

    Raises:
        UserError: If it cannot be read, is too long, or others may read it.
    """
    name = f"--api-key-file {str(path)!r}"
    try:
        with path.open("rb") as file:
            found, key = os.fstat(file.fileno()), file.read(_LONGEST_KEY + 1).strip()
    except OSError as error:
        raise UserError(f"{name}: {(error.strerror or str(error)).lower()}") from None
    if found.st_uid not in (0, os.geteuid()):
        raise UserError(f"{name}: belongs to another user")
    others = stat.S_IRWXO | (stat.S_IWGRP if found.st_uid != os.geteuid() else stat.S_IRWXG)
    if found.st_mode & others:
        mode = stat.S_IMODE(found.st_mode)
        raise UserError(f"{name}: other users may read or change it (mode {mode:04o}); chmod 600")
    if not key:
        raise UserError(f"{name}: empty; one line with a secret of 16 characters or more is needed")
    if len(key) > _LONGEST_KEY:
        raise UserError(f"{name}: longer than {_LONGEST_KEY} bytes")
    return key
