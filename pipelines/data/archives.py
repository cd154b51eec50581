"""Images in a tar or zip, read from start to end; nothing is extracted to disk.

An archive may come from anywhere. So names that lead out of it are refused, links and devices are
left out, and what is decompressed is bounded: for each member, and in all.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from pipelines.core.errors import UserError
from pipelines.data.class_folders import is_image
from pipelines.data.collection import Encoded
from pipelines.data.images import MAX_BYTES

_MEMBER_BYTES = 2**31
"""Largest allowed member in bytes; skipped members of a tar must be decompressed too."""
_HEADER_BYTES = 2**20
"""Largest allowed header in bytes that a tar has for a long name; it is read into memory."""
_FREE_BYTES, _RATIO = 2**30, 200
"""An archive may unpack to the first number of bytes, or to this many times its own size."""
_MEMBERS = 2**23
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_EXTRA = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def names(path: Path, where: str) -> tuple[list[str], list[str]]:
    """Return the names of all members, in order: files, and folders.

    A member that is not a regular file gets a hidden name, so that it never counts as an image.

    Args:
        path: A tar (plain, gz, bz2 or xz) or zip; its first bytes tell which.
        where: What a message calls it.

    Raises:
        UserError: If it is corrupt or truncated, a name leads out of it, or it unpacks to more
            than is allowed.
    """
    if _is_zip(path):
        with _open_zip(path, where) as archive:
            return _zip_names(archive, path)
    with open_tar(path, where) as tar:
        return _tar_names(tar, path)


def contents(path: Path, where: str, chosen: Collection[int]) -> Iterator[tuple[str, Encoded]]:
    """Yield name and bytes of the chosen members, or what is wrong with one.

    Args:
        path: The archive.
        where: What a message calls it.
        chosen: Positions in the files of `names`.

    Raises:
        UserError: If it is found corrupt or truncated.
    """
    if _is_zip(path):
        with _open_zip(path, where) as archive:
            entries = [entry for entry in archive.infolist() if not _is_folder(entry)]
            for at, entry in enumerate(entries):
                if at in chosen:
                    name = f"{path}: {entry.filename}"
                    yield name, _zip_content(archive, entry, name)
        return
    with open_tar(path, where) as tar:
        files = (member for member in tar if not member.isdir())
        for at, member in enumerate(files):
            if at in chosen:
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                if len(content) != member.size:
                    raise UserError(f"{path}: {member.name}: truncated")
                yield f"{path}: {member.name}", content


def stream(path: Path, where: str, skip: int = 0) -> Iterator[tuple[str, Encoded]]:
    """Yield name and bytes of every member but folders, or what is wrong with one, in one pass.

    Of a tar one member is in memory at a time, however many there are; of a zip also its directory.

    Args:
        path: A tar (plain, gz, bz2 or xz) or zip.
        where: What a message calls it.
        skip: How many members to pass over, of which only the name is read.

    Raises:
        UserError: If the archive is found corrupt or truncated, or unpacks to more than is allowed.
    """
    if _is_zip(path):
        with _open_zip(path, where) as archive:
            yield from _zip_stream(archive, path, skip)
        return
    with open_tar(path, where) as tar:
        total, count, most = 0, 0, _most(path)
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has read
            total += member.size
            _check_total(total, most, count, path)
            if member.isdir():
                continue
            count += 1
            if count > skip:
                yield member.name, _tar_content(tar, member, path)
        _check_end(tar, path, total, most)


def _tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> Encoded:
    if wrong := _unfit(member.name, member.size, regular=member.isreg()):
        return UserError(f"{member.name}: {wrong}")
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise UserError(f"{path}: {member.name}: truncated")
    return content


def _zip_stream(archive: zipfile.ZipFile, path: Path, skip: int) -> Iterator[tuple[str, Encoded]]:
    total, count, most = 0, 0, _most(path)
    for entry in archive.infolist():
        total += entry.file_size
        _check_total(total, most, count, path)
        if _is_folder(entry):
            continue
        count += 1
        if count <= skip:
            continue
        name = entry.filename.replace("\\", "/")
        wrong = _unfit(name, entry.file_size, regular=_is_regular(entry))
        yield name, UserError(f"{name}: {wrong}") if wrong else _zip_content(archive, entry, name)


def _unfit(name: str, size: int, *, regular: bool) -> str:
    """Return why a member is not read; empty if it is."""
    if _leads_out(name):
        return "the name leads out of the archive"
    if not regular:
        return "a link or device, not a file"
    return f"larger than {MAX_BYTES >> 20} MiB" if size > MAX_BYTES else ""


class _Header(tarfile.TarInfo):
    """A member, whose extra headers are checked before tarfile reads them into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return the member that a block of 512 bytes describes."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTRA and header.size > _HEADER_BYTES:
            raise UserError(f"a tar with a header of {header.size} bytes; too large")
        return header


@contextmanager
def open_tar(path: Path, where: str) -> Iterator[tarfile.TarFile]:
    """Open a tar, compressed or not, for reading; `where` is what a message calls it.

    Raises:
        UserError: If it is not a tar, or is found corrupt or truncated while it is read.
    """
    try:
        with tarfile.open(path, tarinfo=_Header) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{where}: not a tar (plain, gz, bz2 or xz), or a corrupt or truncated one: "
            f"{_reason(error)}"
        ) from None
    except OSError as error:
        if error.errno is not None:  # a disk error; errors of gzip and bz2 have no number
            raise
        raise UserError(f"{where}: corrupt or truncated: {error}") from None


def _tar_names(tar: tarfile.TarFile, path: Path) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    total, most = 0, _most(path)
    for member in tar:
        _check_name(member.name, path)
        total += member.size
        _check_total(total, most, len(files) + len(folders), path)
        if member.isdir():
            folders.append(member.name)
            continue
        _check_size(member.name, member.size, path, regular=member.isreg())
        files.append(member.name if member.isreg() else f".{member.name}")
    _check_end(tar, path, total, most)
    return files, folders


def _check_end(tar: tarfile.TarFile, path: Path, total: int, most: int) -> None:
    """Refuse a truncated archive: tarfile takes a cut between two members for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{path}: a truncated or corrupt tar: its end is missing")
    while block := stream.read(1 << 20):  # up to the checksum of the compressed stream
        total += len(block)
        _check_total(total, most, 0, path)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _ZIP


@contextmanager
def _open_zip(path: Path, where: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{where}: a corrupt or truncated zip: {_reason(error)}") from None


def _zip_names(archive: zipfile.ZipFile, path: Path) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    total, most = 0, _most(path)
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")  # as some programs on Windows write it
        _check_name(name, path)
        total += entry.file_size
        _check_total(total, most, len(files) + len(folders), path)
        if _is_folder(entry):
            folders.append(name.rstrip("/"))
            continue
        regular = _is_regular(entry)
        _check_size(name, entry.file_size, path, regular=regular)
        files.append(name if regular else f".{name}")
    return files, folders


def _is_regular(entry: zipfile.ZipInfo) -> bool:
    # The upper half holds the mode of Unix; zero, or no type in it: an ordinary file.
    return stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG)


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.replace("\\", "/").endswith("/")


def _zip_content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Encoded:
    if entry.flag_bits & 1:
        return UserError(f"{name}: encrypted")
    try:
        with archive.open(entry) as stream:
            content = stream.read(entry.file_size)
            stream.read(1)  # compares the checksum
    except NotImplementedError:
        return UserError(f"{name}: packed by method {entry.compress_type}, which is not supported")
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return UserError(f"{name}: corrupt or truncated: {_reason(error)}")
    if len(content) != entry.file_size:
        return UserError(f"{name}: corrupt or truncated")
    return content


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in PurePosixPath(name).parts


def _check_name(name: str, path: Path) -> None:
    if _leads_out(name):
        raise UserError(f"{path}: {name}: the name leads out of the archive")


def _check_size(name: str, size: int, path: Path, *, regular: bool) -> None:
    image = regular and is_image(PurePosixPath(name))
    if size > (MAX_BYTES if image else _MEMBER_BYTES):
        raise UserError(f"{path}: {name}: {size} bytes; too large")


def _most(path: Path) -> int:
    """Return how many bytes an archive may unpack to: far more than images do."""
    return max(_FREE_BYTES, _RATIO * path.stat().st_size)


def _check_total(total: int, most: int, members: int, path: Path) -> None:
    if total > most:
        raise UserError(
            f"{path}: unpacks to more than {most} bytes; allowed: {_FREE_BYTES}, or {_RATIO} times "
            "its own size"
        )
    if members >= _MEMBERS:
        raise UserError(f"{path}: more than {_MEMBERS} members")


def _reason(error: Exception) -> str:
    """Return the first line of what a library says."""
    return str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
