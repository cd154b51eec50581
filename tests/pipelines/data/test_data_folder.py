from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.core.errors import UserError
from pipelines.data import archives
from pipelines.data import image_folder as folder
from pipelines.data.class_folders import layout
from pipelines.data.collection import Collection


def read(path: Path, sha256: str = "") -> Collection:
    return folder.read(path, where=path.name, sha256=sha256, size=8, channels=3)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1.jpg", "dog/2.PNG"], ("cat", "dog")),
        (["top/cat/1.jpg", "top/dog/2.jpeg"], ("cat", "dog")),
        (["2023/cat/1.jpg", "2024/cat/1.jpg", "2024/dog/1.jpg"], ("cat", "cat", "dog")),
        (["./cat/1.jpg", "./dog/1.webp"], ("cat", "dog")),
        (["test/cat/1.jpg", "test/dog/1.jpg"], ("cat", "dog")),  # nothing to be the test of
        (["train/cat/1.jpg", "train/dog/1.jpg"], ("cat", "dog")),
    ],
)
def test_an_images_class_is_its_folder(names: list[str], classes: tuple[str, ...]) -> None:
    found = layout(names, "x")
    assert found.classes == classes
    assert found.official is None
    assert found.ignored == ()


@pytest.mark.parametrize("top", ["", "top/"])
@pytest.mark.parametrize("pool", ["train", "Train", "validation"])
def test_test_beside_train_is_the_official_test_set(top: str, pool: str) -> None:
    names = [f"{pool}/cat/1.jpg", "test/cat/2.jpg", f"{pool}/dog/1.jpg", "test/pets/dog/1.jpg"]
    found = layout([top + name for name in names], "x")
    assert found.official == (False, True, False, True)
    assert found.classes == ("cat", "cat", "dog", "dog")


def test_hidden_files_and_files_of_other_kinds_are_ignored_and_counted() -> None:
    others = [".gitkeep", "cat/.1.jpg", "__MACOSX/cat/1.jpg", ".x/cat/1.jpg", "cat/notes.txt", "a"]
    found = layout([*others, "cat/1.jpg", "dog/1.jpg"], "x")
    assert found.images == (6, 7)
    assert found.ignored == tuple(others)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images; needed: one folder per class"),
        (["cat/a.txt"], "no images"),
        (["pets.tar.gz"], r"to read pets\.tar\.gz, set data\.path to that file"),
        (["cat/1.jpg", "cat/2.jpg"], r"one class only \(cat\); at least two"),
        (["1.jpg", "2.jpg"], r"1\.jpg is not in a class folder"),
        (["cat/1.jpg", "dog/1.jpg", "stray.jpg"], r"stray\.jpg is not in a class folder"),
        (["train/1.jpg", "test/1.jpg"], r"train/1\.jpg is not in a class folder"),
        (["train/cat/1.jpg", "train/dog/1.jpg", "train/x.jpg"], r"train/x\.jpg is not in a class"),
        (["cat/1.jpg", "d\udcffg/1.jpg"], r"not a printable UTF-8 name: 'd\\udcffg/1\.jpg'"),
    ],
)
def test_a_layout_without_two_classes_is_a_users_error(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        layout(names, "pictures")
    assert str(caught.value).startswith("data.path = 'pictures': ")
    str(caught.value).encode()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_folder_and_its_tar_give_the_same_images(
    tmp_path: Path, fill: Callable[..., Path], pack: Callable[..., Path], mode: str
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 20)
    (root / "readme.txt").write_text("x")
    files = {
        f"./top/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*.*"))
    }
    whole, packed = read(root), read(pack(tmp_path / "pictures.tar", files, mode))
    assert whole.classes == packed.classes == ("cat", "dog")
    assert sorted(zip(whole.hashes, whole.labels.tolist(), strict=True)) == sorted(
        zip(packed.hashes, packed.labels.tolist(), strict=True)
    )
    assert len(whole.ignored) == len(packed.ignored) == 1
    assert np.array_equal(
        whole.images[np.argsort(whole.hashes)], packed.images[np.argsort(packed.hashes)]
    )
    assert packed.files == {
        "pictures.tar": hashlib.sha256((tmp_path / "pictures.tar").read_bytes()).hexdigest()
    }


def test_large_images_decoded_side_by_side_keep_their_order(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    for number in range(40):  # some chunks go to threads, some do not
        path = tmp_path / "pictures" / ("cat" if number % 2 else "dog") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, *((200, 300) if number < 20 else (8, 9))))
    assert (tmp_path / "pictures/dog/00.png").stat().st_size > 2**16
    found = read(tmp_path / "pictures")
    for row, name in enumerate(found.names):
        alone = folder.read(
            _two(tmp_path / f"alone{row}", name, tmp_path / "pictures"),
            where="x",
            sha256="",
            size=8,
            channels=3,
        )
        assert found.hashes[row] in alone.hashes
        assert found.classes[found.labels[row]] == Path(name).parent.name


def _two(root: Path, name: str, source: Path) -> Path:
    """A folder with one image under its class, and the same under another."""
    for label in (Path(name).parent.name, "other"):
        (root / label).mkdir(parents=True)
        (root / label / "x.png").write_bytes((source / name).read_bytes())
    return root


def test_linked_class_folders_are_read_and_loops_are_not_followed(
    tmp_path: Path, fill: Callable[..., Path]
) -> None:
    root = fill(tmp_path / "pictures", ("cat",), 3)
    away = fill(tmp_path / "away", ("dog",), 3)
    (root / "dog").symlink_to(away / "dog")
    (root / "cat/loop").symlink_to(root)
    assert len(read(root).labels) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_an_unreadable_image_is_named(
    tmp_path: Path, fill: Callable[..., Path], pack: Callable[..., Path], packed: bool
) -> None:
    root = fill(tmp_path / "pictures", ("cat", "dog"), 30)
    broken = root / "dog/17.png"
    broken.write_bytes(broken.read_bytes()[:100])
    if packed:
        files = {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}
        root = pack(tmp_path / "pictures.tar", files)
    with pytest.raises(UserError, match=r"dog/17\.png: corrupt or truncated image"):
        read(root)


def test_a_path_that_is_neither_folder_nor_tar(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path = 'none': no such folder, tar, zip or CSV"):
        read(tmp_path / "none")
    (tmp_path / "x.7z").write_bytes(b"7z" + bytes(2000))
    with pytest.raises(UserError, match=r"data\.path = 'x\.7z': not a tar"):
        read(tmp_path / "x.7z")


def test_a_tar_of_another_hash(
    tmp_path: Path, picture: Callable[..., bytes], pack: Callable[..., Path]
) -> None:
    path = pack(tmp_path / "a.tar", {"cat/1.png": picture(1), "dog/1.png": picture(2)})
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(read(path, found).labels) == 2
    with pytest.raises(UserError, match=rf"a\.tar: sha256 is {found}, expected {'0' * 64}"):
        read(path, "0" * 64)
    with pytest.raises(UserError, match=r"data\.sha256 = .* a folder has no such hash"):
        read(tmp_path, "0" * 64)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_tar_is_refused_wherever_it_is_cut(
    tmp_path: Path, picture: Callable[..., bytes], pack: Callable[..., Path], mode: str
) -> None:
    files = {f"{name}/{n}.png": picture(n) for n in range(4) for name in ("cat", "dog")}
    path = pack(tmp_path / "a.tar", files, mode)
    content = path.read_bytes()
    # Uncompressed, a cut at a multiple of 512 may fall between members.
    cuts = range(512, 8 * 1024, 512) if mode == "w" else (1, 40, len(content) // 2, -1)
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"a\.tar"):
            read(path)


def test_a_flipped_bit_in_a_compressed_tar_is_noticed(
    tmp_path: Path, picture: Callable[..., bytes], pack: Callable[..., Path]
) -> None:
    files = {f"{name}/{n}.png": picture(n) for n in range(4) for name in ("cat", "dog")}
    path = pack(tmp_path / "a.tar.gz", files, "w:gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar\.gz': corrupt or truncated: CRC"):
        read(path)


@pytest.mark.parametrize("name", ["../cat/3.png", "/cat/3.png", "cat/../../3.png"])
def test_names_that_lead_out_of_a_tar_are_refused(
    tmp_path: Path, picture: Callable[..., bytes], pack: Callable[..., Path], name: str
) -> None:
    files = {"cat/1.png": picture(1), "dog/1.png": picture(2), name: picture(3)}
    with pytest.raises(UserError, match="leads out of the archive"):
        read(pack(tmp_path / "a.tar", files))


def test_links_and_devices_in_a_tar_are_ignored(
    tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(9))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for at, name in enumerate(("cat/1.png", "dog/1.png")):
            member = tarfile.TarInfo(name)
            member.size = len(picture(at))
            tar.addfile(member, io.BytesIO(picture(at)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"cat/{kind.decode()}.png")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
    found = read(tmp_path / "a.tar")
    assert len(found.labels) == 2
    assert len(found.ignored) == 4


def test_an_oversized_member_is_refused_unread(
    tmp_path: Path,
    picture: Callable[..., bytes],
    pack: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = pack(tmp_path / "a.tar", {"cat/1.png": picture(1), "dog/1.png": bytes(100_000)})
    monkeypatch.setattr(archives, "MAX_BYTES", 50_000)
    with pytest.raises(UserError, match=r"dog/1\.png: 100000 bytes; too large"):
        read(path)


def test_reading_a_tar_writes_nothing(
    tmp_path: Path,
    picture: Callable[..., bytes],
    pack: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = pack(tmp_path / "a.tar", {"cat/1.png": picture(1), "dog/1.png": picture(2)})
    monkeypatch.chdir(tmp_path)
    read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
