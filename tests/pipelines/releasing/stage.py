"""A registry in a known situation, copied for each test in no time: on sqlite or PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from checkout import Checkout
from nursery import Ended, Nursery
from postgres import Postgres

from pipelines.core.paths import Layout
from pipelines.provenance import signing


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
    """

    env: Mapping[str, str]
    roots: Mapping[str, Path]
    hatch: Nursery

    def call(self, model: str, command: str, fault: str = "", **options: Any) -> Ended:
        """Run a command in the checkout of a model, to die at a point if one is given."""
        env = {**self.env, "PRONG_FAULT": fault}
        return self.hatch.call(self.roots[model], env, command, **options)

    def told(self, model: str, command: str, **options: Any) -> Any:
        """Run a command that must succeed; return what it returned."""
        return self.hatch.told(self.roots[model], self.env, command, **options)

    def start(self, model: str, command: str, fault: str = "", **options: Any) -> int:
        """Start a command; return its process id."""
        env = {**self.env, "PRONG_FAULT": fault}
        return self.hatch.start(self.roots[model], env, command, **options)

    def look(self) -> Any:
        """Say how the registry stands, changing nothing."""
        return self.told("A", "look")


SITUATIONS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "empty": (),
    "registered": (("A", "register", {}),),
    "one": (("A", "release_all", {}),),
    "challenged": (("A", "release_all", {}), ("B", "register", {})),
    "two": (("A", "release_all", {}), ("B", "release_all", {})),
    "three": (
        ("A", "release_all", {}),
        ("B", "release_all", {}),
        ("C", "release_all", {}),
    ),
    "returned": (
        ("A", "release_all", {}),
        ("B", "release_all", {}),
        ("B", "rollback", {}),
        ("C", "register", {}),
    ),
}
"""What was done before: model, command, options."""


@dataclass
class Stage:
    """Makes registries in situations.

    Attributes:
        databases: Where they are kept.
        artifacts: Folder or address of all artifacts.
        roots: Model → a checkout that holds it.
        hatch: Runs the commands.
    """

    databases: Databases
    artifacts: str
    roots: Mapping[str, Path]
    hatch: Nursery
    settings: Mapping[str, str] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)
    _count: Iterator[int] = field(default_factory=lambda: count(1))

    def _registry(self, uri: str) -> Registry:
        env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": self.artifacts}
        return Registry({**env, **self.settings}, self.roots, self.hatch)

    def registry(self, situation: str) -> Registry:
        """Return a new registry in a situation; its database is made by copying."""
        if situation not in self._made:
            uri = self.databases.copy(f"at-{situation}", "migrated")
            registry = self._registry(uri)
            for model, command, options in SITUATIONS[situation]:
                registry.told(model, command, **options)
            self._made.add(situation)
        name = f"try-{next(self._count)}"
        return self._registry(self.databases.copy(name, f"at-{situation}"))


def checkouts(folder: Path, digits: Path) -> dict[str, Path]:
    """Make three checkouts, each with another model, and return their roots."""
    found = {}
    for seed, name in enumerate("ABC"):
        layout = Layout(folder / name)
        layout.state.mkdir(parents=True)
        shutil.copytree(digits, layout.prepared)
        Checkout.make(layout, float(seed), seed)
        if found:  # who shares a registry shares the key
            shutil.copytree(Layout(found["A"]).state / "keys", layout.state / "keys")
        else:
            signing.signing_key(layout)
        found[name] = layout.root
    return found
