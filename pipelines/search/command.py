"""`prong search`: what was asked is checked, the trials are run, and what came of them is shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import params_file, tables
from pipelines.core.config import MODEL_NAME, Params
from pipelines.core.environment import open_checkout
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.search.outcome import Searched
from pipelines.search.space import assignments, parse
from pipelines.systems.optuna.dimensions import written
from pipelines.systems.processes import exit_on_sigterm

_SHOWN = 5
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Options:
    """The options of the command, as they were typed.

    Attributes:
        trials: `--trials`.
        jobs: `--jobs`.
        epochs: `--epochs`; None: those of params.yaml.
        seed: `--seed`.
        name: `--name`, or empty.
        prune: `--prune`.
        apply: `--apply`.
    """

    trials: int
    jobs: str
    epochs: int | None
    seed: int
    name: str
    prune: bool
    apply: bool


def search_and_show(keys: Sequence[str], options: Options) -> None:
    """Search in the checkout this process stands in; print progress, a table and an offer.

    Args:
        keys: What to search; see `pipelines.search.space.parse`.
        options: How.

    Raises:
        UserError: If a key, a range, an option, a parameter, the data or the store is at fault.
        Failed: If preparing the data or the first trials crash.
    """
    exit_on_sigterm()
    jobs = _jobs(options.jobs)
    if options.name and not (
        len(options.name) <= _LONGEST_NAME and re.fullmatch(MODEL_NAME, options.name)
    ):
        raise UserError(
            f"--name {options.name[:_LONGEST_NAME]!r}: allowed: up to {_LONGEST_NAME} letters, "
            "digits, '.', '_' and '-', a letter or digit first"
        )
    layout, params = open_checkout()

    from pipelines.search.run_trials import Wanted, search
    from pipelines.training.methods import LEARNING_RATE

    wanted = Wanted(
        space=parse(keys, params, {str(k): v for k, v in LEARNING_RATE.items()}),
        trials=options.trials,
        jobs=jobs,
        epochs=options.epochs or params.train.epochs,
        seed=options.seed,
        name=options.name,
        stop_early=options.prune,
    )
    _prepare(layout, params)
    console = tables.console()
    done = search(layout, params, wanted, lambda line: console.print(line, soft_wrap=True))
    _show(done)
    _offer(layout, done, apply=options.apply)


def _jobs(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 1000):
        raise UserError(f"--jobs {text!r}: allowed: auto, or a whole number from 1 on")
    return int(text)


def _prepare(layout: Layout, params: Params) -> None:
    """Bring the prepared data up to date, as `prong run` does first."""
    from pipelines.pipeline import data_versions
    from pipelines.pipeline.main_job import check_data, unseen
    from pipelines.registry.start_weights import bring
    from pipelines.systems.dvc import cache, reproduce

    check_data(layout, params)
    cache.share(layout.home, layout.root, params.store.remote)
    data_versions.restore_added(layout)
    reproduce.ensure(layout.root, "prepare", force="prepare" in unseen(params))
    bring(layout, params)


def _show(done: Searched) -> None:
    columns = ("", "trial", "error", "loss", "epoch", *done.space)
    rows = [
        (
            str(place),
            str(one.number),
            f"{one.error:.2f} %",
            f"{one.loss:.4f}",
            f"{one.epoch} of {one.epochs}",
            *(written(one.values[key]) for key in done.space),
        )
        for place, one in enumerate(done.ranking[:_SHOWN], 1)
    ]
    if rows:
        title = f"{done.name}: the best of {len(done.counted)} trials, validation split"
        tables.console().print(tables.table(columns, rows, title=title))


def _offer(layout: Layout, done: Searched, *, apply: bool) -> None:
    from pipelines.search.picture import picture_path

    best, picture, console = done.best, picture_path(layout, done.name), tables.console()
    if any(one.error is not None for one in done.counted):
        place = picture.relative_to(Path.cwd()) if picture.is_relative_to(Path.cwd()) else picture
        console.print(tables.line(f"picture  {place}"), soft_wrap=True)
    if best is None:
        raise UserError("no trial was trained to its end: see above; nothing can be offered")
    values = assignments(best.values)
    if apply:
        changes = params_file.edit(layout.params, values)
        for change in changes:
            console.print(tables.line(f"params.yaml  {change}"), soft_wrap=True)
        if not changes:
            console.print("params.yaml  has the best values already")
        return
    line = " ".join(f"--set {shlex.quote(value)}" for value in values)
    console.print(tables.line(f"take it  prong run {line}"), soft_wrap=True)
