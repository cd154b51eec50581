"""What a released ONNX file says about itself: only what determines its bytes.

Commit, time and run id belong to the registry, so that equal inputs give equal files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from pipelines.core.errors import UserError

FORMAT = 1
INPUT, OUTPUTS = "images", ("logits", "probabilities")
LAYOUT = "uint8 NCHW 0..255"
LARGEST_FILE = 2**31 - 1
"""Bytes: protobuf's own limit, beyond which weights must lie outside the file."""
CHANNELS = (1, 3)
LARGEST_SIZE = 4096
_HASHES = ("data_hash", "params_hash", "code_hash")
_TEXT = ("layout", *_HASHES)


@dataclass(frozen=True)
class OnnxMetadata:
    """The metadata of one ONNX file.

    Attributes:
        classes: Class names; the position is the label.
        size: Edge of the square input, pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: Per channel, of pixel values in [0, 1]; subtracted inside the graph.
        deviation: Per channel, of pixel values in [0, 1]; divided by inside the graph.
        data_hash: Hash of the prepared images, their labels and splits.
        params_hash: See `pipelines.core.fingerprints.params_hash`.
        code_hash: See `pipelines.core.fingerprints.code_hash`.
        layout: Type, order and range of the input.
        format: Version of this metadata.
    """

    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    data_hash: str
    params_hash: str
    code_hash: str
    layout: str = LAYOUT
    format: int = FORMAT

    def __post_init__(self) -> None:
        checks = {
            f"format {self.format} is unknown; known: {FORMAT}": self.format == FORMAT,
            f"layout {self.layout!r} is unknown; known: {LAYOUT}": self.layout == LAYOUT,
            f"size = {self.size}: must be 1 to {LARGEST_SIZE}": 1 <= self.size <= LARGEST_SIZE,
            f"channels = {self.channels}: must be 1 or 3": self.channels in CHANNELS,
            "classes: at least one is needed": bool(self.classes),
            "classes: a name occurs twice": len(set(self.classes)) == len(self.classes),
            "mean and deviation: one finite number per channel is needed": (
                len(self.mean) == len(self.deviation) == self.channels
                and all(abs(value) < 1e6 for value in (*self.mean, *self.deviation))
            ),
        }
        for name in _HASHES:
            value = getattr(self, name)
            checks[f"{name} = {value!r}: must be a sha256 in hex"] = bool(
                re.fullmatch(r"[0-9a-f]{64}", value)
            )
        wrong = [message for message, good in checks.items() if not good]
        if wrong:
            raise ValueError("; ".join(wrong))

    def metadata(self) -> dict[str, str]:
        """Return the card as ONNX metadata: text as it is, all else as JSON, by sorted name."""
        return {
            key: value if key in _TEXT else json.dumps(value, ensure_ascii=False)
            for key, value in sorted(asdict(self).items())
        }

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> OnnxMetadata:
        """Return the card that ONNX metadata holds.

        Raises:
            ValueError: If an entry is missing, unknown, malformed or out of range.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in metadata]
        unknown = sorted(set(metadata) - set(names))
        if missing or unknown:
            wrong = {"missing": missing, "unknown": unknown}
            raise ValueError(
                "; ".join(
                    f"metadata {kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys
                )
            )
        try:
            values = {k: v if k in _TEXT else json.loads(v) for k, v in metadata.items()}
            # As JSON, where strict still lets a list become a tuple.
            return _ADAPTER.validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(str(part) for part in found["loc"])
            raise ValueError(f"{where}: {found['msg']}" if where else found["msg"]) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"an entry is not JSON: {error}") from None


_ADAPTER = TypeAdapter(OnnxMetadata)


class Described(Protocol):
    """Data, a network or a released model, by what goes in and what the answers mean."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the label."""

    @property
    def size(self) -> int:
        """Edge of the square images, pixels."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""


def require_fit(made: Path, ours: Described, source: Path, theirs: Described, stage: str) -> None:
    """Check that what a stage made belongs to what it is used with.

    Args:
        made: Where `ours` was read.
        ours: What the stage made.
        source: Where `theirs` was read.
        theirs: What it should have been made from.
        stage: The stage that makes `made`.

    Raises:
        UserError: If classes, size or channels differ.
    """
    for name in ("size", "channels", "classes"):
        one, other = getattr(ours, name), getattr(theirs, name)
        if one != other:
            shown = f"{one} and {other}" if name != "classes" else f"{len(one)} and {len(other)}"
            raise UserError(
                f"{made} and {source} differ in {name} ({shown}): not made from each other; "
                f"rerun {stage}"
            )
