"""Checkpoints: complete or absent, verified by their hashes, read without pickle.

A checkpoint is a folder `step-00000120` of safetensors and JSON files and `manifest.json`, which
holds the sha256 of each. It is written under another name, synced and renamed, so a process
that is killed at any point does not damage earlier checkpoints. Rank 0 writes the state that all
ranks share; each rank writes its own state.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.core import faults
from pipelines.core.files import read_json, sha256_file, sync, write_json

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")
_PARTIAL = ".partial"
_log = logging.getLogger(__name__)

Part = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose hashes were verified.

    Attributes:
        path: Its folder.
        step: Optimizer steps made.
        ranks: Number of ranks that wrote it.
        meta: Plain numbers that all ranks share.
    """

    path: Path
    step: int
    ranks: int
    meta: dict[str, Any]

    def shared(self, name: str) -> Part:
        """Return the tensors that rank 0 wrote under `name`; they share the file's memory."""
        return load_file(self.path / f"{name}.safetensors")

    def own(self, rank: int) -> tuple[dict[str, Any], Part]:
        """Return the numbers and tensors of `rank` alone."""
        numbers: dict[str, Any] = read_json(self.path / f"rank-{rank}.json")
        return numbers, load_file(self.path / f"rank-{rank}.safetensors")


def write(
    folder: Path,
    step: int,
    *,
    rank: int,
    ranks: int,
    barrier: Callable[[], None],
    meta: Mapping[str, object],
    shared: Mapping[str, Mapping[str, Tensor]],
    numbers: Mapping[str, object],
    own: Mapping[str, Tensor],
    keep: int,
) -> None:
    """Write a checkpoint, with every rank writing its part; keep only the last `keep` checkpoints.

    Args:
        folder: Folder for checkpoints of this training; the same for all ranks.
        step: Optimizer steps made.
        rank: This rank.
        ranks: Number of ranks.
        barrier: Returns once every rank has called it.
        meta: Plain numbers that all ranks share; taken from rank 0.
        shared: Tensors that are the same on all ranks, by file and name; taken from rank 0.
        numbers: This rank's own plain numbers.
        own: This rank's own tensors.
        keep: Number of checkpoints to keep, at least 1.
    """
    final = _path(folder, step)
    partial = folder / (final.name + _PARTIAL)
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    barrier()
    faults.point("checkpoint.begun")
    write_json(partial / f"rank-{rank}.json", dict(numbers))
    _save(partial / f"rank-{rank}.safetensors", own)
    if rank == 0:
        write_json(partial / "meta.json", dict(meta))
        for name, tensors in shared.items():
            _save(partial / f"{name}.safetensors", tensors)
    faults.point("checkpoint.parts")
    barrier()
    if rank == 0:
        files = {file.name: sha256_file(file) for file in sorted(partial.iterdir())}
        write_json(partial / _MANIFEST, {"step": step, "ranks": ranks, "files": files})
        faults.point("checkpoint.written")
        if final.exists():  # a damaged checkpoint of an earlier attempt
            shutil.rmtree(final)
        partial.rename(final)
        faults.point("checkpoint.renamed")
        sync(folder)
        _prune(folder, keep)
    barrier()
    faults.point("checkpoint.done")


def agreed(folder: Path, rank: int, told: Callable[[int], int]) -> Checkpoint | None:
    """Return the newest checkpoint that rank 0 finds valid, the same on all ranks, or None.

    Args:
        folder: Folder with the checkpoints; the same for all ranks.
        rank: This rank.
        told: Returns rank 0's number, ≥ −1, on every rank.
    """
    if rank == 0:
        for broken in folder.glob(f"*{_PARTIAL}"):  # its writers have ended
            shutil.rmtree(broken)
    found = newest(folder) if rank == 0 else None
    step = told(found.step if found else -1)
    if rank == 0 or step < 0:
        return found
    return read(_path(folder, step))


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint, or None; damaged ones are reported and skipped."""
    found = sorted((p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)), reverse=True)
    for path in found:
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("checkpoint %s is damaged (%s); an earlier one is used", path, error)
    return None


def read(path: Path) -> Checkpoint:
    """Check a checkpoint's files against its manifest.

    Raises:
        ValueError: If a file is absent or its hash is different, or the manifest cannot be read.
        OSError: If a file cannot be read.
    """
    try:
        manifest = read_json(path / _MANIFEST)
    except json.JSONDecodeError as error:
        raise ValueError(f"{_MANIFEST}: {error}") from None
    ranks = int(manifest["ranks"])
    parts = {f"rank-{rank}.{kind}" for rank in range(ranks) for kind in ("json", "safetensors")}
    absent = {"meta.json", *parts} - set(manifest["files"])
    if absent:
        raise ValueError(f"{_MANIFEST}: does not list {', '.join(sorted(absent))}")
    for name, digest in manifest["files"].items():
        file = path / Path(name).name
        if not file.is_file() or sha256_file(file) != digest:
            raise ValueError(f"{name}: absent, or its bytes have changed")
    meta = read_json(path / "meta.json")
    return Checkpoint(path, int(manifest["step"]), ranks, meta)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Cloned: safetensors refuses tensors that share memory.
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, path)
    sync(path)


def _prune(folder: Path, keep: int) -> None:
    whole = sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name))
    for path in whole[:-keep]:
        # Renamed first: a partly removed checkpoint must not look like a damaged one.
        doomed = path.with_name(path.name + _PARTIAL)
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
