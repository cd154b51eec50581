"""Registries in known situations, copied for each test: on sqlite or PostgreSQL."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import fork_server
import release_commands
from finished_checkout import FinishedCheckout
from fork_server import Ended, Forked
from key_pairs import share_key
from postgres import Postgres

from pipelines.core.paths import Layout


class Databases(Protocol):
    """Where databases come from."""

    def copy(self, name: str, of: str) -> str:
        """Make a database as a copy of another and return its address."""

    def drop(self, name: str) -> None:
        """Remove it."""


@dataclass(frozen=True)
class SqliteFiles:
    """Databases as files of one folder; `migrated` is MLflow's, empty."""

    folder: Path

    def copy(self, name: str, of: str) -> str:
        shutil.copy(self.folder / of, self.folder / name)
        return f"sqlite:///{self.folder / name}"

    def drop(self, name: str) -> None:
        (self.folder / name).unlink()


@dataclass(frozen=True)
class PostgresDatabases:
    """Databases of one cluster; `migrated` is MLflow's, empty."""

    server: Postgres

    def copy(self, name: str, of: str) -> str:
        return self.server.create(name, of)

    def drop(self, name: str) -> None:
        self.server.drop(name)


@dataclass(frozen=True)
class Registry:
    """One registry of one test.

    Attributes:
        env: The settings that lead to it.
        roots: Model → a checkout that holds it.
        leaves: Directory for what commands print and return.
    """

    env: Mapping[str, str]
    roots: Mapping[str, Path]
    leaves: Path

    def start(
        self,
        model: str,
        command: str,
        fault: str = "",
        lasts: float | None = None,
        **options: Any,
    ) -> Forked:
        """Start a command in the checkout of a model.

        Args:
            model: Which.
            command: One of `release_commands.COMMANDS`.
            fault: A point at which it is to die.
            lasts: Seconds that a lease lasts, if not as long as everywhere.
            options: Arguments of the command.
        """
        return fork_server.start(
            release_commands.run,
            *(self.roots[model], command, lasts, options),
            leaves=self.leaves,
            cwd=self.roots[model],
            env={**os.environ, **self.env, "PRONG_FAULT": fault},
        )

    def call(self, model: str, command: str, fault: str = "", **options: Any) -> Ended:
        """Run a command to its end."""
        return self.start(model, command, fault, **options).wait()

    def told(self, model: str, command: str, **options: Any) -> Any:
        """Run a command that must succeed; return what it returned."""
        ended = self.call(model, command, **options)
        assert ended.code == 0, ended.said
        return ended.said

    def look(self) -> Any:
        """Say how the registry stands, changing nothing."""
        return self.told("A", "look")


Steps = tuple[tuple[str, str, dict[str, Any]], ...]
SITUATIONS: dict[str, tuple[str, Steps]] = {
    "empty": ("migrated", ()),
    "registered": ("empty", (("A", "register", {}),)),
    "one": ("empty", (("A", "release_model", {}),)),
    "challenged": ("one", (("B", "register", {}),)),
    "two": ("one", (("B", "release_model", {}),)),
    "three": ("two", (("C", "release_model", {}),)),
    "returned": ("two", (("B", "rollback", {}), ("C", "register", {}))),
}
"""The situation before, and what is done then: model, command, options."""


@dataclass
class Registries:
    """Makes registries in situations.

    Attributes:
        databases: Where they are kept.
        artifacts: Folder or address of all artifacts.
        roots: Model → a checkout that holds it.
        leaves: Directory for what commands print and return.
    """

    databases: Databases
    artifacts: str
    roots: Mapping[str, Path]
    leaves: Path
    _made: dict[str, str] = field(default_factory=lambda: {"migrated": "migrated"})
    _count: Iterator[int] = field(default_factory=lambda: count(1))

    def _registry(self, uri: str) -> Registry:
        env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": self.artifacts}
        return Registry(env, self.roots, self.leaves)

    def at(self, situation: str) -> Registry:
        """Return a new registry in a situation; its database is made by copying."""
        return self._registry(self.databases.copy(f"try-{next(self._count)}", self._at(situation)))

    def _at(self, situation: str) -> str:
        """Return the database in a situation, made if it is not there."""
        if situation not in self._made:
            before, steps = SITUATIONS[situation]
            name = f"at-{situation}"
            registry = self._registry(self.databases.copy(name, self._at(before)))
            for model, command, options in steps:
                registry.told(model, command, **options)
            self._made[situation] = name
        return self._made[situation]


def checkouts(folder: Path, digits: Path) -> dict[str, Path]:
    """Make three checkouts, each with another model, and return their roots."""
    found = {}
    for seed, name in enumerate("ABC"):
        layout = Layout(folder / name)
        layout.state.mkdir(parents=True)
        shutil.copytree(digits, layout.prepared)
        FinishedCheckout.make(layout, float(seed), seed)
        found[name] = layout.root
        share_key(Layout(found["A"]), layout)
    return found
