from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipelines.core.errors import UserError, disk_error
from pipelines.core.files import (
    atomic_directory,
    atomic_path,
    sha256_json,
    sha256_sources,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_directory_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("a", "b"):
        with atomic_directory(target) as folder:
            (folder / name).write_text(name)
    assert os.listdir(target) == ["b"]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_json_has_one_form(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})


def test_the_hash_of_sources_sees_names_and_bytes_but_no_bytecode(tmp_path: Path) -> None:
    package = tmp_path / "p"
    package.mkdir()
    (package / "a.py").write_text("1")
    first = sha256_sources([package], tmp_path)
    (package / "a.pyc").write_text("2")
    assert sha256_sources([package], tmp_path) == first
    (package / "a.py").rename(package / "b.py")
    assert sha256_sources([package], tmp_path) != first


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_full_or_read_only_disk_becomes_a_message(code: int) -> None:
    mended = disk_error(OSError(code, os.strerror(code), "/some/file"))
    assert isinstance(mended, UserError)
    assert "/some/file" in str(mended)


def test_other_errors_of_the_system_are_not_blamed_on_the_disk() -> None:
    assert disk_error(FileNotFoundError(errno.ENOENT, "gone")) is None


def test_a_really_full_device_is_reported(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space") as caught, full.open("w") as file:
        file.write("x" * 100_000)
    assert "no space left" in str(disk_error(caught.value))
