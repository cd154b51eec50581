"""Makes the variants of a champion: equal champions and examples give equal bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

import pipelines
from pipelines.core.files import atomic_path, sha256_file, sha256_json, sha256_sources, write_json
from pipelines.data.prepared import load_split
from pipelines.evaluation.scoring import fitted
from pipelines.provenance.lineage import versions as package_versions
from pipelines.registry.outside import Sha256
from pipelines.registry.version_files import cached_file
from pipelines.variants.approximated import NotMade, VariantBase
from pipelines.variants.kinds import FP16, INT8, TRUNCATED

CALIBRATION = 512
"""Training examples that decide the ranges of 8-bit activations."""
_BATCH = 64
_SOURCES = Path(pipelines.__file__).parent


@dataclass(frozen=True)
class BuiltVariant:
    """A variant, made and not judged.

    Attributes:
        kind: Of `KINDS`.
        path: Its ONNX file.
        sha256: Of the file.
        how: In one line.
    """

    kind: str
    path: Path
    sha256: str
    how: str


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class _MadeBefore:
    """What was made of a champion before, in this checkout."""

    sha256: Sha256
    how: str


def build(base: VariantBase, kind: str) -> BuiltVariant:
    """Return a variant of a champion; what was made before from the same is not made again.

    Args:
        base: The champion.
        kind: Of `KINDS`.

    Raises:
        NotMade: If there is no such variant of it, with the reason.
        UserError: If the data cannot be read.
    """
    place = base.layout.state / "variants" / f"{_recipe(base, kind)}.json"
    record = _read(place)
    if record is not None:
        path = cached_file(base.layout, record.sha256)
        if path.is_file() and sha256_file(path) == record.sha256:
            return BuiltVariant(kind, path, record.sha256, record.how)
    content, how = _MAKERS[kind](base)
    sha256 = hashlib.sha256(content).hexdigest()
    path = cached_file(base.layout, sha256)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    write_json(place, {"sha256": sha256, "how": how})
    return BuiltVariant(kind, path, sha256, how)


def _recipe(base: VariantBase, kind: str) -> str:
    """Return the hash of all that a variant's bytes depend on."""
    sources = [_SOURCES / "variants", _SOURCES / "systems/onnx", _SOURCES / "export"]
    return sha256_json(
        {
            "kind": kind,
            "champion": base.statement.sha256,
            "data": base.data.data_hash,
            "margin": base.params.gates.margin,
            "packages": package_versions(),
            "sources": sha256_sources(sources, _SOURCES),
        }
    )


def _read(place: Path) -> _MadeBefore | None:
    try:
        return TypeAdapter(_MadeBefore).validate_json(place.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _fp16(base: VariantBase) -> tuple[bytes, str]:
    from pipelines.systems.onnx.half_precision import half_precision

    return half_precision(base.content), "weights and sums in float16"


def _int8(base: VariantBase) -> tuple[bytes, str]:
    from pipelines.systems.onnx.quantised import batches_of, quantised
    from pipelines.systems.onnx.runtime import fed

    inputs = load_split(base.layout.prepared, "train").inputs[:CALIBRATION]
    if not len(inputs):
        raise NotMade("there is no training example to calibrate with")
    given = fed(base.card.form, fitted(inputs, base.data.form, base.card.form))
    try:
        content = quantised(base.content, batches_of(given, _BATCH))
    except ValueError as error:
        raise NotMade(f"cannot be quantised: {error}") from None
    return content, f"8-bit integers, ranges by {len(inputs)} training examples"


def _truncated(base: VariantBase) -> tuple[bytes, str]:
    from pipelines.variants.truncate import truncated  # torch, which the others do without

    return truncated(base)


_MAKERS: dict[str, Callable[[VariantBase], tuple[bytes, str]]] = {
    FP16: _fp16,
    INT8: _int8,
    TRUNCATED: _truncated,
}
