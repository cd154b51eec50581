"""Images that are large beside the machine's memory: on disk while prepared, mapped in training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from safetensors.numpy import save

from pipelines.core.errors import UserError
from pipelines.data import large_arrays, split_file
from pipelines.data.large_arrays import GrowingImages, gathered, joined, reserve
from pipelines.data.prepared import load_split
from pipelines.training.batches import epoch
from pipelines.training.shared_arrays import shared

KINDS = st.sampled_from(["uint8", "uint16", "float32", "float64", "int64"])
TENSORS = st.dictionaries(
    st.sampled_from(["inputs", "targets", "hashes", "µ \"'"]),
    KINDS.flatmap(
        lambda kind: arrays(
            kind, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
            elements=st.integers(0, 200),
        )
    ),
    min_size=1,
)  # fmt: skip


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Count every array as large; returns the folder of those on disk."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(large_arrays, "_SHARE", 2**60)
    monkeypatch.setattr(split_file, "MAPPED", 1)
    return folder


@settings(max_examples=200, deadline=None)
@given(TENSORS)
def test_the_file_is_that_of_safetensors_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, NDArray[Any]]
) -> None:
    path = tmp_path_factory.mktemp("split") / "a.safetensors"
    split_file.write(path, tensors)
    assert path.read_bytes() == save(tensors)
    again = split_file.read(path, frozenset(tensors), large="inputs")
    for name, array in tensors.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.usefixtures("little_memory")
def test_a_mapped_tensor_is_that_of_the_file_and_outlives_it(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        "inputs": drawn.integers(0, 2**16, (5, 3, 4, 4)).astype(np.uint16),
        "targets": drawn.integers(0, 9, 5),
    }
    path = tmp_path / "a.safetensors"
    split_file.write(path, tensors)
    found = split_file.read(path, frozenset(tensors), large="inputs")["inputs"]
    assert isinstance(found.base, np.memmap)
    assert not found.flags.writeable
    tensor = shared(found)
    split_file.write(path, {"targets": tensors["targets"]})  # replaced, not written over
    path.unlink()
    np.testing.assert_array_equal(found, tensors["inputs"])
    np.testing.assert_array_equal(tensor.numpy(), tensors["inputs"])


def test_arrays_on_disk_hold_what_those_in_memory_do(little_memory: Path) -> None:
    drawn = np.random.default_rng(1)
    images = drawn.integers(0, 256, (1500, 2, 3, 3), dtype=np.uint8)
    room = reserve(1500, 2, 3)
    assert isinstance(room.base, np.memmap)
    room[:] = images
    rows = drawn.permutation(1500)[:1100]
    np.testing.assert_array_equal(gathered(room, rows), images[rows])
    np.testing.assert_array_equal(joined(room, images[:7]), np.concatenate([images, images[:7]]))
    growing = GrowingImages(2, 3, 8)
    for image in images:
        growing.append(image)
    np.testing.assert_array_equal(growing.all(), images)
    assert not list(little_memory.iterdir())  # they have no name there


@pytest.mark.usefixtures("little_memory")
def test_a_disk_that_is_full_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = r"data\.size = 64: 100 images .* GiB, too much for memory .*TMPDIR"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(UserError, match=said):
            reserve(100, 3, 64)

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"scratch: No space left on device; .*TMPDIR"):
        reserve(100, 3, 64)


def test_the_data_and_the_batches_are_the_same(digits: Path, little_memory: Path) -> None:
    """The prepared digits, read from memory and mapped, give equal batches."""
    mapped = load_split(digits, "train")
    assert isinstance(mapped.inputs.base, np.memmap)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(split_file, "MAPPED", 2**60)
        held = load_split(digits, "train")
    assert held.inputs.base is None or not isinstance(held.inputs.base, np.memmap)
    given_ = [
        epoch(
            shared(split.inputs), torch.from_numpy(split.targets), batch=64, augment=2, flip=True,
            seed=3, number=1,
        )
        for split in (held, mapped)
    ]  # fmt: skip
    for one, other in zip(*given_, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not list(little_memory.iterdir())


_MANY = """
import os, resource, sys
from pathlib import Path

import numpy as np
import torch

from pipelines.core.config import DataConfig
from pipelines.data import large_arrays, split_file
from pipelines.data.prepare import prepare
from pipelines.data.prepared import load_split
from pipelines.training.batches import epoch
from pipelines.training.shared_arrays import shared

root = Path(sys.argv[1])
torch.set_num_threads(1)
config = DataConfig(
    source="many:examples", path="data", mirror="", sha256="", size=64, channels=3, bits=8, limit=0,
    seed=0, validation=0.1, gate=0.05, test=0.05,
)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
held = 1024 * int(status["VmData"].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[2]),) * 2)
large_arrays._SHARE = 2**60
card = prepare(config, root=root, downloads=root / "downloads", out=root / "prepared")
split = load_split(root / "prepared", "train")
seen = 0
for images, _, size in epoch(
    shared(split.inputs), torch.from_numpy(split.targets), batch=128, augment=2, flip=True,
    seed=0, number=0,
):
    seen += size
print(card.total(), split.inputs.nbytes, seen)
"""
_SOURCE = """
import numpy as np

def examples():
    drawn = np.random.default_rng(0)
    for number in range(30_000):
        yield drawn.integers(0, 256, (64, 64, 3), dtype=np.uint8), "ab"[number % 2]
"""


@pytest.mark.slow
def test_more_images_than_memory_are_prepared_and_read(tmp_path: Path) -> None:
    """A process that may take 150 MiB prepares 352 MiB of images and makes an epoch of them."""
    (tmp_path / "many.py").write_text(_SOURCE)
    done = subprocess.run(
        [sys.executable, "-c", _MANY, str(tmp_path), str(150 * 2**20)],
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    total, size, seen = map(int, done.stdout.split()[-3:])
    assert total == 30_000
    assert size > 256 * 2**20
    assert seen > 23_000
