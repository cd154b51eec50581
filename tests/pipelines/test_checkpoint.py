"""Checkpoints: whole or passed over, each rank its own part, the last N kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pipelines.training import checkpoint


def _write(folder: Path, step: int, keep: int = 2) -> None:
    """Two ranks in turn: the second's part first, as a barrier would let either come first."""
    waiting = iter([lambda: _own(folder, step), lambda: None, lambda: None])
    checkpoint.write(
        folder,
        step,
        rank=0,
        ranks=2,
        barrier=lambda: next(waiting)(),
        meta={"epoch": step // 10},
        shared={"network": {"w": torch.full((3,), float(step))}},
        numbers={"images": step},
        own={"rng": torch.tensor([0, step])},
        keep=keep,
    )


def _own(folder: Path, step: int) -> None:
    waiting = iter([None, None, None])
    # The folder is there; the other rank's second and third barriers are its own.
    checkpoint.write(
        folder,
        step,
        rank=1,
        ranks=2,
        barrier=lambda: next(waiting),
        meta={},
        shared={},
        numbers={"images": step + 1},
        own={"rng": torch.tensor([1, step])},
        keep=1,
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    _write(tmp_path, 30)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, found.ranks, found.meta) == (30, 2, {"epoch": 3})
    assert torch.equal(found.shared("network")["w"], torch.full((3,), 30.0))
    for rank in (0, 1):
        numbers, own = found.own(rank)
        assert numbers == {"images": 30 + rank}
        assert own["rng"].tolist() == [rank, 30]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        _write(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize("name", ["network.safetensors", "rank-1.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, 10)
    _write(tmp_path, 20)
    file = tmp_path / "step-00000020" / name
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(
            data[: len(data) // 2] if harm == "cut" else bytes([data[0] ^ 1]) + data[1:]
        )
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "step-00000020 is damaged" in caplog.text


def test_a_half_written_one_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-00000040.partial").mkdir()
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


@pytest.mark.parametrize("name", ["meta.json", "rank-1.safetensors"])
def test_a_manifest_that_names_too_little_or_another_folder_is_refused(
    tmp_path: Path, name: str
) -> None:
    _write(tmp_path, 10)
    manifest = tmp_path / "step-00000010/manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{name}"', f'"../{name}"'))
    assert checkpoint.newest(tmp_path) is None


def test_one_that_was_written_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    _write(tmp_path, 10)
    (tmp_path / "step-00000010/meta.json").write_text("{}")
    _write(tmp_path, 10)
    assert checkpoint.read(tmp_path / "step-00000010").meta == {"epoch": 1}
