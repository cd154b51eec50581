"""The weights that a training starts from: brought before the stage, only read by it.

`train.checkpoint_from` may name the champion, and who that is changes with time. So it is looked up
before the stage train, and what was found lies in `data/start`, on which the stage depends: DVC
sees a new champion, and the stage needs no registry.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, sha256_file, write_json

KEY = "train.checkpoint_from"
FOLDER = "data/start"
SCRATCH = "scratch"
"""What the lineage says of a training that started from no version."""
_RECORD, _WEIGHTS = "start.json", "weights.safetensors"
_STRICT = ConfigDict(extra="forbid", strict=True)
_TEXT = re.compile(r"v([1-9][0-9]{0,8}) ([0-9a-f]{64})")
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Start:
    """The released version whose weights a training starts from.

    Attributes:
        asked: `train.checkpoint_from`.
        version: Its number.
        sha256: Of its ONNX file, by its signed statement.
        weights: sha256 of the file of its weights, by the same.
    """

    asked: str
    version: Annotated[int, Field(ge=1)]
    sha256: _Hash
    weights: _Hash

    __pydantic_config__ = _STRICT

    @property
    def text(self) -> str:
        """What the lineage says: `v3` and the hash of the ONNX file."""
        return f"v{self.version} {self.sha256}"


@dataclass(frozen=True)
class NoStart:
    """That a training starts from scratch, because no version is champion yet.

    Attributes:
        asked: `train.checkpoint_from`.
    """

    asked: Literal["champion"]

    __pydantic_config__ = _STRICT

    @property
    def text(self) -> str:
        """What the lineage says."""
        return SCRATCH


_ADAPTER: TypeAdapter[Start | NoStart] = TypeAdapter(Start | NoStart)


def parsed(text: str) -> tuple[int, str] | None:
    """Return version and sha256 of what the lineage says; None if it names no version."""
    found = _TEXT.fullmatch(text)
    return (int(found[1]), found[2]) if found else None


def lineage_text(root: Path, asked: str) -> str:
    """Return what the lineage says of a checkout's training.

    Args:
        root: The checkout.
        asked: `train.checkpoint_from`.

    Raises:
        UserError: As `read` does.
    """
    start = read(root, asked)
    return SCRATCH if start is None else start.text


def read(root: Path, asked: str) -> Start | NoStart | None:
    """Return what was found for `train.checkpoint_from`; None if it is empty.

    Raises:
        UserError: If nothing was brought for it.
    """
    if not asked:
        return None
    path = root / FOLDER / _RECORD
    try:
        found = _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is None or found.asked != asked:
        raise UserError(
            f"{KEY} = {asked!r}: {path} does not say where to start; `prong run` looks the version "
            "up and brings its weights, DVC alone cannot"
        )
    return found


def weights_file(root: Path, start: Start) -> Path:
    """Return the file of the weights, whose hash was checked.

    Raises:
        UserError: If it is absent or another one.
    """
    path = root / FOLDER / _WEIGHTS
    if not path.is_file() or sha256_file(path) != start.weights:
        raise UserError(
            f"{KEY} = {start.asked!r}: {path} is not the file of version {start.version}'s "
            "weights; `prong run` brings it again"
        )
    return path


def put(root: Path, start: Start | NoStart, weights: Path | None) -> None:
    """Write what was found into a checkout; what is there already stays as it is.

    Args:
        root: The checkout.
        start: What was found.
        weights: The file of the weights, whose hash was checked; None with `NoStart`.
    """
    path, record = root / FOLDER / _WEIGHTS, root / FOLDER / _RECORD
    if weights is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or sha256_file(path) != sha256_file(weights):
        with atomic_path(path) as temporary:
            shutil.copyfile(weights, temporary)
    try:
        known = read(root, start.asked)
    except UserError:
        known = None
    if known != start:
        write_json(record, asdict(start))


def clear(root: Path) -> None:
    """Remove what was brought for an earlier setting."""
    for name in (_RECORD, _WEIGHTS):
        (root / FOLDER / name).unlink(missing_ok=True)
