from __future__ import annotations

import bz2
import contextlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.core.errors import UserError
from pipelines.data import archives, image_folder
from pipelines.data.collection import Collection

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def read(path: Path) -> Collection:
    return image_folder.read(path, where=path.name, sha256="", size=8, channels=3)


@pytest.fixture
def pack_zip() -> Callable[..., Path]:
    def make(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    return make


@pytest.fixture
def pictures(picture: Callable[..., bytes]) -> dict[str, bytes]:
    return {f"{name}/{n}.png": picture(n + 10 * at) for n in range(3) for at, name in pairs()}


def pairs() -> list[tuple[int, str]]:
    return list(enumerate(("cat", "dog")))


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_gives_the_images_of_its_folder(
    tmp_path: Path, pictures: dict[str, bytes], pack_zip: Callable[..., Path], method: int
) -> None:
    for name, content in pictures.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    system = {"top/.DS_Store": b"x", "__MACOSX/top/cat/._0.png": b"x", "top/cat/Thumbs.db": b"x"}
    files = {f"top/{name}": content for name, content in pictures.items()} | system
    path = pack_zip(tmp_path / "pictures.zip", {"top/": b"", "top/fox/": b"", **files}, method)
    whole, packed = read(tmp_path / "pictures"), read(path)
    assert whole.classes == packed.classes == ("cat", "dog")
    assert sorted(whole.hashes) == sorted(packed.hashes)
    assert np.array_equal(
        whole.images[np.argsort(whole.hashes)], packed.images[np.argsort(packed.hashes)]
    )
    assert len(packed.ignored) == 3
    assert packed.notes == ("1 folder (top/fox) without an image: no class",)


@pytest.mark.parametrize("name", ["../cat/3.png", "/cat/3.png", "cat/../../3.png", "..\\3.png"])
def test_names_that_lead_out_of_a_zip_are_refused(
    tmp_path: Path, pictures: dict[str, bytes], pack_zip: Callable[..., Path], name: str
) -> None:
    path = pack_zip(tmp_path / "a.zip", {**pictures, name: b"x"})
    with pytest.raises(UserError, match="leads out of the archive"):
        read(path)


def test_links_in_a_zip_are_left_out_and_backslashes_are_folders(
    tmp_path: Path, pictures: dict[str, bytes], picture: Callable[..., bytes]
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        for name, content in pictures.items():
            archive.writestr(name.replace("/", "\\"), content)
    found = read(tmp_path / "a.zip")
    assert found.classes == ("cat", "dog")
    assert len(found.labels) == 6
    assert found.ignored == (".cat/link.png",)


def test_every_bad_member_of_a_zip_is_named(
    tmp_path: Path, pictures: dict[str, bytes], pack_zip: Callable[..., Path]
) -> None:
    path = pack_zip(tmp_path / "a.zip", pictures, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for name in ("cat/1.png", "dog/2.png"):
        content[content.index(pictures[name]) + 60] ^= 1  # the checksum no longer holds
    path.write_bytes(content)
    with pytest.raises(UserError, match="2 images cannot be used") as caught:
        read(path)
    assert "cat/1.png: corrupt or truncated: Bad CRC-32" in str(caught.value)
    assert "dog/2.png: corrupt or truncated: Bad CRC-32" in str(caught.value)
    # The bit that says encrypted, and a method that no library knows.
    path = pack_zip(tmp_path / "a.zip", pictures, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    central = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    content[central[0] + 8] |= 1
    content[central[1] + 10] = 9
    content[content.index(b"PK\x03\x04", 30) + 8] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match="2 images cannot be used") as caught:
        read(path)
    assert ": encrypted" in str(caught.value)
    assert ": packed by method 9, which is not supported" in str(caught.value)


def test_a_cut_zip_is_refused(
    tmp_path: Path, pictures: dict[str, bytes], pack_zip: Callable[..., Path]
) -> None:
    path = pack_zip(tmp_path / "a.zip", pictures)
    content = path.read_bytes()
    for cut in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a\.zip': a corrupt or truncated zip: "):
            read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_a_damaged_zip_is_read_or_a_users_error(
    tmp_path: Path, pictures: dict[str, bytes], pack_zip: Callable[..., Path], data: st.DataObject
) -> None:
    path = pack_zip(tmp_path / "a.zip", pictures)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):  # no other error, whatever the bytes
        assert len(read(path).labels) <= len(pictures)


def test_a_bomb_is_refused_unread(
    tmp_path: Path,
    pictures: dict[str, bytes],
    pack: Callable[..., Path],
    pack_zip: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archives, "_FREE_BYTES", 2**20)
    bomb = {**pictures, **{f"cat/{n}.bmp": bytes(2**19) for n in range(8)}}
    for path in (pack_zip(tmp_path / "a.zip", bomb), pack(tmp_path / "a.tar.bz2", bomb, "w:bz2")):
        assert path.stat().st_size < 2**14
        with pytest.raises(UserError, match=r"a\.\S+: unpacks to more than \d+ bytes"):
            read(path)
    # The same after the end of the archive, which is read up to its checksum.
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("cat/1.txt"))
    packed = bz2.compress((tmp_path / "b.tar").read_bytes() + bytes(2**25))
    (tmp_path / "b.tar.bz2").write_bytes(packed)
    with pytest.raises(UserError, match=r"b\.tar\.bz2: unpacks to more than"):
        read(tmp_path / "b.tar.bz2")


def test_an_oversized_image_in_a_zip_is_refused_unread(
    tmp_path: Path,
    pictures: dict[str, bytes],
    pack_zip: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = pack_zip(tmp_path / "a.zip", {**pictures, "dog/9.png": bytes(100_000)})
    monkeypatch.setattr(archives, "MAX_BYTES", 50_000)
    with pytest.raises(UserError, match=r"dog/9\.png: 100000 bytes; too large"):
        read(path)


def test_a_tar_with_a_giant_header_is_refused_unread(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**34
    file = io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + bytes(10 * 512))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    with pytest.raises(UserError, match="a tar with a header of 17179869184 bytes; too large"):
        read(tmp_path / "a.tar")
