"""`prong score`: the champion's answers for a folder, an archive or tables, in one Parquet file.

Every input is found once, in the file or in the list of those that could not be read; that is
checked before the file is put in its place. Memory does not grow with the number of inputs. A run
that was killed is gone on with; batches are cut by the number of the input, so that the file is the
same.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from pipelines.core.errors import Failed, UserError
from pipelines.core.files import atomic_path, sha256_json, sweep
from pipelines.core.processors import whole_processors
from pipelines.core.progress import bar
from pipelines.core.text import shown
from pipelines.serving.batch.folder_listing import list_files
from pipelines.serving.batch.read_ahead import read_ahead
from pipelines.serving.batch.score_columns import (
    NUMBER,
    PATH,
    REASON,
    SHA256,
    VERSION,
    AnswerColumns,
    Batch,
)
from pipelines.serving.batch.score_inputs import InputSource, NamedInputs, identity, source_of
from pipelines.serving.batch.score_parts import LISTING, ScoreParts, held
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.named import task_of

_FORMAT = 1  # of the result and its parts; part of the key
_LARGEST_BATCH = 256
_BATCH_BYTES = 64 * 2**20  # of the inputs of a batch
_PART_BATCHES, _PART_SECONDS = 16, 30.0  # a killed run loses no more
_AHEAD_BYTES = 64 * 2**20  # of encoded images that wait to be decoded
_GROUP_BYTES, _LARGEST_GROUP = 32 * 2**20, 2**16  # of a row group
_MOST_WORKERS = 8


@dataclass(frozen=True)
class ScoredInputs:
    """What a scoring came to.

    Attributes:
        out: The Parquet file.
        quarantine: The list of inputs without an answer, CSV; None if all have one.
        inputs: How many there are.
        quarantined: How many of them have no answer.
        resumed: How many of them an earlier run had answered.
        seconds: That this run took.
        model: Name of the registered model.
        version: Of it.
        provider: Where it ran.
    """

    out: Path
    quarantine: Path | None
    inputs: int
    quarantined: int
    resumed: int
    seconds: float
    model: str
    version: int
    provider: str


def score(
    model: OnnxModel,
    path: Path,
    out: Path,
    *,
    name: str,
    version: int,
    checkout: Path,
    overwrite: bool = False,
) -> ScoredInputs:
    """Write a model's answers for many inputs.

    Args:
        model: The released model.
        path: A folder (of images, or of tables for a model of rows), an archive of images, or a
            table.
        out: The Parquet file; while the work goes on, parts lie beside it in `NAME.parts`.
        name: Of the registered model.
        version: Of it.
        checkout: A path in the checkout that holds the code of the user's own task, if any.
        overwrite: Whether a file of that name is replaced.

    Raises:
        UserError: If the model does not take what is there, `out` cannot be written or is there
            already, or an archive is corrupt.
        Failed: If the file that was written does not hold every input once.
        OSError: If the disk does not take it; a later run goes on.
    """
    begun = time.monotonic()
    _check_paths(path, out)
    columns = AnswerColumns(task_of(model.form, checkout))
    with held(out.with_suffix(".parts")) as parts:
        sweep(out)
        sweep(quarantine_of(out))
        listed = list_files(path, parts.folder / LISTING) if path.is_dir() else None
        source = source_of(path, listed, model.form)
        facts = {"model": name, "version": version, "sha256": model.sha256}
        given = listed.sha256 if listed else identity(path)
        key = sha256_json([_FORMAT, facts, model.provider, str(path.resolve()), given])
        resumed = parts.resume(columns, key)
        if out.exists() and not overwrite:
            if (finished := _finished(out, key)) is None:
                raise UserError(f"--out {shown(out)}: is there already; --overwrite replaces it")
            parts.remove()
            inputs, quarantined = finished
            resumed = inputs
        else:
            _answer(model, source, columns, parts)
            facts |= {"key": key, "inputs": parts.done, "quarantined": parts.quarantined}
            facts |= {"classes": model.form.classes} if model.form.classes else {}
            inputs, quarantined = parts.done, parts.quarantined
            _write(parts, columns, out, facts)
            parts.remove()
    return ScoredInputs(
        out,
        quarantine_of(out) if quarantined else None,
        inputs,
        quarantined,
        resumed,
        time.monotonic() - begun,
        name,
        version,
        model.provider,
    )


def quarantine_of(out: Path) -> Path:
    """Return where the inputs are listed that have no answer in a file."""
    return out.with_suffix(".quarantine.csv")


def _check_paths(path: Path, out: Path) -> None:
    if out.suffix.lower() != ".parquet" or not out.stem:
        raise UserError(f"--out {shown(out)}: allowed: a name that ends in .parquet")
    if out.is_dir():
        raise UserError(f"--out {shown(out)}: is a folder")
    if not out.parent.is_dir():
        raise UserError(f"--out {shown(out)}: there is no folder {shown(out.parent)}")
    if not path.exists():
        raise UserError(f"{shown(path)}: does not exist")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{shown(path)}: neither a folder nor a file")
    place, inside = out.resolve(), path.resolve()
    if place == inside or (path.is_dir() and place.is_relative_to(inside)):
        raise UserError(
            f"--out {shown(out)}: lies in what is to be scored, and would be one of its inputs"
        )


def _finished(out: Path, key: str) -> tuple[int, int] | None:
    """Return how many inputs a file has, and how many of them without an answer, if it is ours."""
    try:
        found = parquet.read_schema(out).metadata or {}
        if found.get(b"prong.key", b"").decode() != key:
            return None
        return int(found[b"prong.inputs"]), int(found[b"prong.quarantined"])
    except (arrow.ArrowException, OSError, ValueError, KeyError):
        return None


def batch_size(model: OnnxModel) -> int:
    """Return how many inputs one call of the runtime is given."""
    form = model.form
    bytes_each = int(np.prod(form.input_shape)) * form.dtype.itemsize
    return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // max(bytes_each, 1)))


def _answer(
    model: OnnxModel, source: InputSource, columns: AnswerColumns, parts: ScoreParts
) -> None:
    """Answer what no part answers yet, part by part."""
    size = batch_size(model)
    rows = model.form.kind == "rows"
    workers = 1 if rows else min(_MOST_WORKERS, whole_processors())
    found = read_ahead(
        source.pieces(parts.done),
        source.inputs,
        weight=source.weight,
        workers=workers,
        depth=workers + 2 * max(1, size // 32),
        most=_AHEAD_BYTES,
    )
    left = None if source.count is None else source.count - parts.done
    pending: list[Batch] = []
    begun = time.monotonic()
    with closing(found), bar("Scoring", left, least=2000) as advance:
        for inputs in _batches(found, size):
            pending.append(_asked(model, columns, inputs, size))
            advance(len(inputs.names))
            if len(pending) == _PART_BATCHES or time.monotonic() - begun > _PART_SECONDS:
                parts.add(pending)
                pending, begun = [], time.monotonic()
        if pending:
            parts.add(pending)


def _batches(found: Iterable[NamedInputs], size: int) -> Iterator[NamedInputs]:
    """Yield the same inputs, `size` at a time; so a batch does not depend on where a run began."""
    waiting: list[NamedInputs] = []
    count = 0
    for inputs in found:
        rest = inputs
        while count + len(rest.names) >= size:
            first, rest = rest.split(size - count)
            yield _joined([*waiting, first])
            waiting, count = [], 0
        if rest.names:
            waiting.append(rest)
            count += len(rest.names)
    if waiting:
        yield _joined(waiting)


def _joined(several: list[NamedInputs]) -> NamedInputs:
    names = [name for one in several for name in one.names]
    reasons = [reason for one in several for reason in one.reasons]
    return NamedInputs(names, reasons, np.concatenate([one.arrays for one in several]))


def _asked(model: OnnxModel, columns: AnswerColumns, inputs: NamedInputs, size: int) -> Batch:
    if not len(inputs.arrays):
        return inputs.names, inputs.reasons, None
    kept = columns.kept(model.answers(inputs.arrays, batch=size), inputs.arrays)
    finite = np.isfinite(kept.reshape(len(kept), -1)).all(axis=1)
    if finite.all():
        return inputs.names, inputs.reasons, kept
    sound = iter(finite.tolist())
    reasons = [
        reason or ("" if next(sound) else "the answer is not finite") for reason in inputs.reasons
    ]
    return inputs.names, reasons, kept[finite]


def _write(parts: ScoreParts, columns: AnswerColumns, out: Path, facts: dict[str, Any]) -> None:
    """Write the list of inputs without an answer, and then the file; check both."""
    quarantine = quarantine_of(out)
    if parts.quarantined:
        with atomic_path(quarantine) as temporary:
            _write_quarantine(parts, temporary)
    else:
        quarantine.unlink(missing_ok=True)
    with atomic_path(out) as temporary:
        _write_rows(parts, columns, temporary, facts)
        _check(temporary, quarantine if parts.quarantined else None, parts.done)


def _write_quarantine(parts: ScoreParts, into: Path) -> None:
    with into.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((NUMBER, PATH, REASON))
        for table in parts.tables():
            bad = table.filter(compute.is_valid(table.column(REASON)))
            chosen = bad.select((NUMBER, PATH, REASON)).to_pydict()
            writer.writerows(zip(*chosen.values(), strict=True))


def _write_rows(
    parts: ScoreParts, columns: AnswerColumns, into: Path, facts: dict[str, Any]
) -> None:
    """Write the rows in groups whose size does not depend on that of the parts."""
    schema = columns.final_schema(facts)
    group = max(1024, min(_LARGEST_GROUP, _GROUP_BYTES // (8 * (columns.width + 4))))
    with parquet.ParquetWriter(into, schema) as writer:
        waiting: list[Any] = []
        count = 0
        for table in parts.tables():
            good = table.filter(compute.is_null(table.column(REASON))).drop_columns([REASON])
            good = _with_version(good, schema, facts)
            while count + good.num_rows >= group:
                first = good.slice(0, group - count)
                _write_group(writer, [*waiting, first], group)
                good = good.slice(group - count)
                waiting, count = [], 0
            waiting.append(good)
            count += good.num_rows
        if count:
            _write_group(writer, waiting, group)


def _write_group(writer: Any, tables: list[Any], group: int) -> None:
    writer.write_table(arrow.concat_tables(tables).combine_chunks(), row_group_size=group)


def _with_version(table: Any, schema: Any, facts: dict[str, Any]) -> Any:
    n = table.num_rows
    same = [
        arrow.repeat(arrow.scalar(facts[name], schema.field(name).type), n)
        for name in (VERSION, SHA256)
    ]
    return arrow.Table.from_arrays([*table.columns, *same], schema=schema)


def _check(written: Path, quarantine: Path | None, inputs: int) -> None:
    """Read both files again, and count how often each input is in them.

    Raises:
        Failed: If one is not there once.
    """
    seen = np.zeros(inputs, np.uint8)
    with parquet.ParquetFile(written) as file:
        for batch in file.iter_batches(columns=[NUMBER]):
            np.add.at(seen, batch.column(0).to_numpy(), 1)
    if quarantine is not None:
        with quarantine.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                seen[int(row[NUMBER])] += 1
    if not (seen == 1).all():
        wrong = int((seen != 1).sum())
        raise Failed(f"{shown(written)}: {wrong} of {inputs} inputs are not in it once; not kept")
