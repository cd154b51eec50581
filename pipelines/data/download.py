"""Downloaded files: identified by their hash, downloaded once, never incomplete.

A file is taken from the downloads folder if it is there with the right hash, otherwise from the
mirror, otherwise from its original host. A download is written to a `.part` file, which a later
attempt continues. It is renamed only when its hash is right.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import requests
import urllib3

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.progress import bar

ATTEMPTS = 5
"""Consecutive attempts without any data after which a host counts as not answering."""
_MOST_ATTEMPTS = 200
_BLOCK = 1 << 18
_TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
_NETWORK = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True)
class Remote:
    """A file that is identified by its hash.

    Attributes:
        source: The `data.source` it belongs to; a mirror may have a folder of this name.
        filename: Its name on every host.
        hosts: URL bases to try, in this order.
        sha256: Of the file or, where `unpacked` is set, of its uncompressed content, because
            mirrors may compress it again.
        unpacked: Bytes of the uncompressed content; 0: the hash is that of the file itself.
        most: Largest allowed size in bytes.
    """

    source: str
    filename: str
    hosts: tuple[str, ...]
    sha256: str
    unpacked: int = 0
    most: int = 2**30


class _Again(Exception):
    """An attempt failed, and a further attempt may succeed."""


class _Absent(Exception):
    """The host answers, but does not send the file."""


def fetch(
    remote: Remote, *, mirror: str, root: Path, downloads: Path, backoff: float = 0.5
) -> Path:
    """Return the path of a verified copy of the file.

    Args:
        remote: The file.
        mirror: `data.mirror`: empty, a directory (relative to `root`), a file:// URL, or an
            http(s) URL base. The file is `<mirror>/<filename>` or `<mirror>/<source>/<filename>`.
            A file in a directory is used in place.
        root: The directory that a relative mirror starts from.
        downloads: Folder for downloads, with one folder for each source.
        backoff: Seconds before the second attempt; doubled for each further attempt.

    Raises:
        UserError: If the mirror or the file in it is missing, or the file is corrupt, truncated or
            has another hash; the message gives file, expected hash and found hash.
        Unavailable: If no host answers after retries; a later call continues the download.
    """
    target = downloads / remote.source / remote.filename
    if target.is_file():
        if _found(target, remote) == remote.sha256:
            return target
        target.unlink()
    folder = folder_of(mirror, root)
    if folder is not None and not folder.is_dir():
        raise UserError(f"data.mirror = {mirror!r}: no such directory: {folder}")
    if folder is not None:
        return _in_directory(remote, folder, mirror)
    bases = (
        (mirror.rstrip("/"), f"{mirror.rstrip('/')}/{remote.source}") if mirror else remote.hosts
    )
    return _from_hosts(remote, bases, target, mirror, backoff)


def gunzip(path: Path, size: int) -> bytes:
    """Return the uncompressed content of a gzip file of known size.

    Args:
        path: A file that has been verified.
        size: Its uncompressed bytes; no more are read.
    """
    with gzip.open(path) as file:
        return file.read(size)


def folder_of(mirror: str, root: Path) -> Path | None:
    """Return the folder that a mirror names, there or not; None if it is empty or a host's URL.

    Args:
        mirror: `data.mirror`.
        root: The directory that a relative mirror starts from.

    Raises:
        UserError: If it is another kind of URL.
    """
    if not mirror:
        return None
    parts = urlsplit(mirror)
    if parts.scheme in ("http", "https"):
        if not parts.netloc:
            raise UserError(f"data.mirror = {mirror!r}: the URL has no host")
        return None
    if "://" in mirror and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
        raise UserError(
            f"data.mirror = {mirror!r}: allowed: a directory, or a file://, http:// or https:// URL"
        )
    is_url = parts.scheme == "file"
    return Path(unquote(parts.path)) if is_url else root / Path(mirror).expanduser()


def _in_directory(remote: Remote, folder: Path, mirror: str) -> Path:
    places = (folder / remote.filename, folder / remote.source / remote.filename)
    there = [place for place in places if place.is_file()]
    if not there:
        raise UserError(
            f"data.mirror = {mirror!r}: neither {' nor '.join(map(str, places))} exists"
        )
    for place in there:
        found = _found(place, remote)
        if found == remote.sha256:
            return place
    raise _wrong(str(place), found, remote)


def _from_hosts(
    remote: Remote, bases: Iterable[str], target: Path, mirror: str, backoff: float
) -> Path:
    absent: list[str] = []
    failed: UserError | None = None
    for base in bases:
        url = f"{base}/{quote(remote.filename)}"
        try:
            return _download(url, target, remote, backoff)
        except _Absent as error:
            absent.append(f"{url}: {error}")
        except UserError as error:  # a wrong file is more informative than a host without an answer
            if failed is None or isinstance(failed, Unavailable):
                failed = error
    if isinstance(failed, Unavailable) and not mirror:
        raise Unavailable(f"{failed}; data.mirror may name a copy of the file")
    if failed is not None:
        raise failed
    if mirror:
        raise UserError(f"data.mirror = {mirror!r}: the file is not there: {'; '.join(absent)}")
    raise Unavailable(f"{remote.filename}: {'; '.join(absent)}; set data.mirror to another host")


def _wrong(where: str, found: str, remote: Remote) -> UserError:
    what = "uncompressed content" if remote.unpacked else "file"
    return UserError(
        f"{where}: corrupt, truncated or another file: "
        f"sha256 of the {what} is {found}, expected {remote.sha256}"
    )


def _found(path: Path, remote: Remote) -> str:
    """Return the hash of a file (`Remote.sha256`), with a remark if reading it fails."""
    digest = hashlib.sha256()
    read = 0
    try:
        for block in _blocks(path, unpack=remote.unpacked > 0):
            read += len(block)
            digest.update(block)
            if read > (remote.unpacked or remote.most):
                return f"{digest.hexdigest()} (of the first {read} bytes; there are more)"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"{digest.hexdigest()} (of the first {read} bytes; then: {error})"
    return digest.hexdigest()


def _blocks(path: Path, *, unpack: bool) -> Iterator[bytes]:
    with gzip.open(path) if unpack else path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _download(url: str, target: Path, remote: Remote, backoff: float) -> Path:
    """Download to `target`; if a continued part is wrong, delete it and start again once."""
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for last in (False, True):
        resumed = _transfer(url, part, remote, backoff)
        found = _found(part, remote)
        if found == remote.sha256:
            part.replace(target)
            break
        part.unlink()
        if last or not resumed:  # try again only if it was made of two parts
            raise _wrong(url, found, remote)
    return target


def _transfer(url: str, part: Path, remote: Remote, backoff: float) -> bool:
    """Complete `part`; return whether the last answer continued an existing part."""
    idle = 0
    with requests.Session() as session:
        for _ in range(_MOST_ATTEMPTS):
            before = _size(part)
            try:
                return _attempt(session, url, part, before, remote) > 0
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
                raise UserError(f"{url}: not a URL that can be fetched: {error}") from None
            except (_Again, *_NETWORK) as error:
                reason = error
            idle = 1 if _size(part) > before else idle + 1
            if idle >= ATTEMPTS:
                break
            time.sleep(backoff * 2 ** (idle - 1))
    raise Unavailable(f"{url}: no answer after {ATTEMPTS} attempts: {_heart(reason)}")


def _heart(error: Exception) -> str:
    """Return the relevant part of a network library's nested message."""
    text = " ".join(str(error).split())
    found = re.findall(r"\[Errno -?\d+\] ([^\])'\"]+)", text)
    return found[-1] if found else text[:300]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(session: requests.Session, url: str, part: Path, offset: int, remote: Remote) -> int:
    """Request the missing part of a file and append it to `part`.

    Returns:
        The byte at which the answer began: 0 if the host ignores ranges.
    """
    # identity: if a host compressed a .gz again, the client would decompress it once too often.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        status = response.status_code
        stated = re.fullmatch(
            r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
        )
        if status == 416:
            if offset and stated and stated[2] == str(offset):
                return offset  # it was already complete
            part.unlink(missing_ok=True)
            raise _Again("the host's file is shorter than the downloaded part")
        if status == 206:
            if not offset or not stated or stated[1] != str(offset):
                part.unlink(missing_ok=True)
                raise _Again("the host sent another range than requested")
            total = int(stated[2]) if stated[2] != "*" else None
        elif status == 200:
            offset = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        elif status in (408, 425, 429) or status >= 500:
            raise _Again(f"status {status}")
        else:
            raise _Absent(f"status {status}")
        if total is not None and total > remote.most:
            part.unlink(missing_ok=True)
            raise UserError(f"{url}: {total} bytes; at most {remote.most} are expected")
        _receive(response, part, offset, total, remote, url)
    if total is not None and _size(part) < total:
        raise _Again(f"received {_size(part)} of {total} bytes")
    return offset


def _receive(
    response: requests.Response,
    part: Path,
    offset: int,
    total: int | None,
    remote: Remote,
    url: str,
) -> None:
    size = offset
    try:
        with (
            part.open("ab" if offset else "wb") as file,
            bar(f"Fetching {remote.filename}", total, least=2**20, unit="bytes") as advance,
        ):
            advance(offset)
            for block in response.raw.stream(_BLOCK, decode_content=False):
                size += len(block)
                if size > remote.most:
                    raise UserError(f"{url}: more than the {remote.most} bytes expected")
                file.write(block)
                advance(len(block))
    except _NETWORK:
        raise
    except (OSError, UserError):  # a full disk or an endless file: delete the part
        part.unlink(missing_ok=True)
        raise
