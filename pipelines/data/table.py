"""`data.source: table`: one CSV or Parquet file, or a folder with train, validation and test."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.core.config import DataConfig
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.text import shown
from pipelines.data.prepared import SPLITS, Split
from pipelines.data.schema import listed
from pipelines.data.splits import Shares, assign
from pipelines.data.table_columns import choose
from pipelines.data.table_file import ENDINGS, Table, is_table, read
from pipelines.data.table_rows import Canonical, canonical, content_hashes, encode, learn, spread
from pipelines.data.table_target import Target, columns_named, find, give_away
from pipelines.tasks.form import Form, Value

_SETS = {"train": "", "validation": "validation", "val": "validation", "test": "test"}
_RANK = {"": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class TableData:
    """A table, split and encoded.

    Attributes:
        form: Inputs and answers.
        splits: Of `SPLITS`.
        official: The splits that are the source's own.
        leaks: Rows left out because an official set has equal cells.
        ignored: Files of the folder that are not used.
        notes: Points to know before training.
        content: sha256 over all rows, whatever their order.
    """

    form: Form
    splits: Mapping[str, Split]
    official: tuple[str, ...]
    leaks: int
    ignored: int
    notes: tuple[str, ...]
    content: str


@dataclass(frozen=True)
class _Source:
    table: Table
    sets: tuple[str, ...]  # of each row: a key of _RANK
    ignored: tuple[str, ...] = ()


def load(config: DataConfig, task: str, root: Path) -> TableData:
    """Read, check, split and encode a table.

    Equal rows give equal results, whatever their order. Means, deviations, categories and gaps are
    those of the train split; rows with equal cells are always in the same split.

    Args:
        config: `data` of `params.yaml`.
        task: `task.name` of `params.yaml`.
        root: The directory that relative paths start from.

    Raises:
        UserError: If the table, its target or a column is not as it must be.
    """
    source = _read(config, root)
    where = source.table.where
    names = columns_named("data.target", config.target, source.table)
    names = names or ([*source.table.cells, *source.table.unread][-1],)
    out = columns_named("data.leave_out", config.leave_out, source.table)
    texts = columns_named("data.categories", config.categories, source.table)
    for name in names:
        if name in out:
            raise UserError(f"data.leave_out = {config.leave_out!r}: {name!r} is the target")
        if name in source.table.unread:
            kind = source.table.unread[name]
            raise UserError(f"data.target = {name!r}: {kind} is no kind of target")
    source, notes = _with_target(source, names)
    table = source.table
    target = find(table, names, task)
    kept, more = choose(_without(table, names), out, texts)
    notes += more
    if not kept:
        raise UserError(f"{where}: no column is left beside the target; {'; '.join(more)}")
    columns = canonical(table, kept)
    notes += _refuse_leaks(columns, target, config, where)
    hashes = content_hashes(columns, len(table))
    rows, leaks = _rows(config, source, hashes, target)
    notes += _leaks_and_repeats(hashes, target, rows, leaks)
    learnt = learn(table, kept, rows["train"])
    if len(learnt) < len(kept):
        known = {column.name for column in learnt}
        lost = [shown(one.name) for one in kept if one.name not in known]
        notes.append(f"{listed(lost, 'column', 'columns')} left out: empty in the split train")
    inputs, faults = encode(table, learnt)
    assert not faults  # choose has seen every cell
    splits = {
        name: Split(inputs[at], target.targets[at], tuple(hashes[row] for row in at))
        for name, at in rows.items()
    }
    if source.ignored:
        notes.append(f"{listed(source.ignored, 'file', 'files')} of the folder not used")
    official = tuple(name for name in ("validation", "test") if name in source.sets)
    form = Form(
        task=target.task,
        classes=target.classes,
        values=_learnt_values(target, rows["train"]),
        columns=learnt,
    )
    content = _content(hashes, target)
    return TableData(form, splits, official, leaks, len(source.ignored), tuple(notes), content)


def _without(table: Table, names: Sequence[str]) -> Table:
    cells = {name: cells for name, cells in table.cells.items() if name not in names}
    unread = {name: kind for name, kind in table.unread.items() if name not in names}
    return Table(table.where, cells, table.lines, unread)


def _read(config: DataConfig, root: Path) -> _Source:
    path = root / config.path
    said = f"data.path = {config.path!r}"
    if not path.exists():
        raise UserError(f"{said}: does not exist; needed: {', '.join(ENDINGS)}, or a folder")
    if not path.is_dir():
        if config.sha256 and (found := sha256_file(path)) != config.sha256:
            raise UserError(f"{said}: has sha256 {found}, data.sha256 is {config.sha256}")
        table = read(path, said)
        return _Source(table, ("",) * len(table))
    if config.sha256:
        raise UserError(f"data.sha256 = {config.sha256!r}: must be '', because {said} is a folder")
    files = sorted(one for one in path.iterdir() if one.is_file() and one.name[0] != ".")
    tables = [one for one in files if is_table(one.name)]
    sets: dict[str, Path] = {}
    for one in tables:
        name = _SETS.get(one.name.lower().split(".")[0])
        if name is not None and name in sets:
            raise UserError(f"{said}: {sets[name].name} and {one.name} are the same set")
        if name is not None:
            sets[name] = one
    if not sets and len(tables) == 1:
        sets[""] = tables[0]
    if "" not in sets:
        found = listed([shown(one.name) for one in files], "file", "files")
        raise UserError(
            f"{said}: no table named train; needed: one table, or train, and where there are such "
            f"sets validation and test, each as one of {', '.join(ENDINGS)}; found {found}"
        )
    parts = {name: read(sets[name], f"{said}: {sets[name].name}") for name in sorted(sets)}
    ignored = tuple(shown(one.name) for one in files if one not in sets.values())
    return _Source(_joined(parts, sets, said), tuple(_sets_of(parts)), ignored)


def _sets_of(parts: Mapping[str, Table]) -> Iterator[str]:
    for name, part in parts.items():
        yield from (name,) * len(part)


def _joined(parts: Mapping[str, Table], files: Mapping[str, Path], said: str) -> Table:
    """Return the sets as one table, whose columns are in the order of train's."""
    first = parts[""]
    names = {*first.cells, *first.unread}
    for name, part in parts.items():
        own = {*part.cells, *part.unread}
        if own != names:
            lacks = [f"{files[name].name} has no column {shown(n)}" for n in sorted(names - own)]
            spare = [f"{files[''].name} has no column {shown(n)}" for n in sorted(own - names)]
            raise UserError(f"{said}: the sets have different columns: {'; '.join(lacks + spare)}")
    if len(parts) == 1:
        return first
    unread = {name: kind for part in parts.values() for name, kind in part.unread.items()}
    cells = {
        name: [cell for part in parts.values() for cell in part.cells[name]]
        for name in first.cells
        if name not in unread
    }
    lines = [f"{line} of {files[n].name}" for n, part in parts.items() for line in part.lines]
    return Table(said, cells, lines, unread)


def _with_target(source: _Source, names: Sequence[str]) -> tuple[_Source, list[str]]:
    """Return the rows that have a target, and a note on the others."""
    table = source.table
    known = [at for at in range(len(table)) if all(table.cells[name][at] for name in names)]
    if not known:
        said = ", ".join(names)
        raise UserError(f"data.target = {said!r}: empty in every row of {table.where}")
    lost = len(table) - len(known)
    if not lost:
        return source, []
    rows = "row has" if lost == 1 else "rows have"
    sets = tuple(source.sets[at] for at in known)
    note = f"{lost} of {len(table)} {rows} no target and {'is' if lost == 1 else 'are'} not used"
    return _Source(table.rows(known), sets, source.ignored), [note]


def _refuse_leaks(columns: Canonical, target: Target, config: DataConfig, where: str) -> list[str]:
    leaks = give_away(columns, target)
    if not leaks:
        return []
    said = ", ".join(map(shown, leaks))
    of = ", ".join(target.names)
    if len(leaks) == len(columns):
        return [f"{listed([*map(shown, leaks)], 'column', 'columns')} determines {of} alone"]
    out = ",".join([*filter(None, [config.leave_out]), *leaks])
    verb = "determines" if len(leaks) == 1 else "determine"
    raise UserError(
        f"{where}: {said} {verb} the target {of} one to one: a model would learn nothing "
        f"else; leave {'it' if len(leaks) == 1 else 'them'} out: --set data.leave_out={out}"
    )


def _rows(
    config: DataConfig, source: _Source, hashes: Sequence[str], target: Target
) -> tuple[dict[str, list[int]], int]:
    """Return the rows of each split by content hash, equal ones by target; and how many leak."""
    ranks = [_RANK[name] for name in source.sets]
    rank: dict[str, int] = defaultdict(int)
    for content, own in zip(hashes, ranks, strict=True):
        rank[content] = max(rank[content], own)
    answers = target.targets.reshape(len(hashes), -1).tolist()
    order = sorted(range(len(hashes)), key=lambda row: (hashes[row], answers[row]))
    known = [row for row in order if ranks[row] == rank[hashes[row]]]
    sets = {of: [row for row in known if ranks[row] == of] for of in (2, 1, 0)}
    if 0 < config.limit < len(known):
        left = config.limit
        for of in (2, 1):
            share = max(1, round(config.limit * len(sets[of]) / len(known))) if sets[of] else 0
            sets[of] = sets[of][: min(left, share)]
            left -= len(sets[of])
        sets[0] = sets[0][:left]
    shares = Shares(config.validation, config.gate, config.test)
    test, held = (None if name not in source.sets else False for name in ("test", "validation"))
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    rows["test"], rows["validation"] = sets[2], sets[1]
    for row in sets[0]:
        split = assign(config.seed, hashes[row], shares, official=test, validation=held)
        rows[split].append(row)
    return rows, len(hashes) - len(known)


def _leaks_and_repeats(
    hashes: Sequence[str], target: Target, rows: Mapping[str, Sequence[int]], leaks: int
) -> list[str]:
    notes = []
    if leaks:
        verb = "row left out: it equals one" if leaks == 1 else "rows left out: they equal some"
        notes.append(f"{leaks} {verb} of the official test or validation set")
    groups: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in (row for part in rows.values() for row in part):
        groups[hashes[row]].append(tuple(np.atleast_1d(target.targets[row]).tolist()))
    again = sum(len(answers) - 1 for answers in groups.values())
    if again:
        rest = "row repeats" if again == 1 else "rows repeat"
        notes.append(f"{again} {rest} the cells of another one, in the same split")
    torn = [len(answers) for answers in groups.values() if len(set(answers)) > 1]
    if torn:
        notes.append(
            f"{sum(torn)} rows have equal cells and different targets ({len(torn)} different "
            "ones): no model can answer all of them"
        )
    return notes


def _learnt_values(target: Target, train: Sequence[int]) -> tuple[Value, ...]:
    if target.classes:
        return ()
    if not train:  # the check of all splits says so
        return tuple(Value(name, 0.0, 1.0) for name in target.names)
    values: NDArray[np.float64] = target.targets[list(train)]
    return tuple(
        Value(name, *spread(values[:, at].tolist())) for at, name in enumerate(target.names)
    )


def _content(hashes: Sequence[str], target: Target) -> str:
    answers = target.targets.reshape(len(hashes), -1).tolist()
    named = [
        (content, [target.classes[at] for at in row] if target.classes else row)
        for content, row in zip(hashes, answers, strict=True)
    ]
    return hashlib.sha256(repr(sorted(named)).encode()).hexdigest()
