"""Checkouts that begin where releases ended: those are made once in a process, and copied."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from finished_checkout import FinishedCheckout

from pipelines.core.paths import Layout
from pipelines.release import promote as promotion
from pipelines.release import register as release


@dataclass(frozen=True)
class Starts:
    """Makes checkouts with versions.

    Attributes:
        folder: Where what is copied is kept.
        database: MLflow's, empty.
        digits: Prepared digits.
    """

    folder: Path
    database: Path
    digits: Path
    _made: dict[tuple[float, ...], FinishedCheckout] = field(default_factory=dict)

    def registered(self, layout: Layout) -> FinishedCheckout:
        """Let a checkout have one version, of a model without noise, that was never judged."""
        return self._copied(layout, ())

    def released(self, layout: Layout, *noises: float) -> FinishedCheckout:
        """Let a checkout have released these models one after another, whatever their error."""
        return self._copied(layout, noises)

    def _copied(self, layout: Layout, noises: tuple[float, ...]) -> FinishedCheckout:
        if noises not in self._made:
            self._made[noises] = self._make(noises)
        made = self._made[noises]
        for place in (layout.state, layout.prepared):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made.layout.root, layout.root, symlinks=True, dirs_exist_ok=True)
        move_database(layout.state / "mlflow.db", made.layout.root, layout.root)
        return replace(made, layout=layout)

    def _make(self, noises: tuple[float, ...]) -> FinishedCheckout:
        layout = Layout(self.folder / "-".join(["after", *map(str, noises)]) / "checkout")
        if len(noises) > 1:
            self._copied(layout, noises[:-1])
        else:
            layout.state.mkdir(parents=True)
            shutil.copy(self.database, layout.state / "mlflow.db")
            shutil.copytree(self.digits, layout.prepared)
        made = FinishedCheckout.make(layout, noises[-1] if noises else 0.0, 0)
        params = made.with_margin(0.9) if noises else made.params
        done = release.register(layout, params, "" if noises else None)
        if noises:
            assert promotion.promote(layout, params, done.version, "").promoted
        return made


def move_database(database: Path, old: Path, new: Path) -> None:
    """Write the database as if all had been made in the new place."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for column in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
                name = f'"{column[1]}"'
                connection.execute(
                    f'UPDATE "{table}" SET {name} = replace({name}, ?, ?) WHERE instr({name}, ?)',
                    (str(old), str(new), str(old)),
                )
