"""One look at the registry after another: what is live, and what is wrong.

Files are fetched and hashed only when something changed; most looks are one question.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.registry.last_seen import cached_drift, cached_file, drift_sha256
from pipelines.registry.state import ModelState, read_state
from pipelines.registry.statements import Statement
from pipelines.registry.version_files import (
    drift_file,
    none_live,
    released_file,
    required_statement,
    version_file,
    warnings,
)
from pipelines.registry.versions import CHALLENGER, version_or_none
from pipelines.serving.watch.lines import Challenger, RegistryLook, shortened
from pipelines.systems.mlflow import answering, connect
from pipelines.systems.mlflow.address import is_read_only, shown_uri, sqlite_file, tracking_uri

_LONGEST_PAUSE = 60.0
"""Seconds between two tries to fetch a file that could not be had."""
_MOST_FILES = 5
"""Whose state is remembered: model, drift graph, challenger, and the ones before."""


@dataclass
class _NotFetched:
    """A file that could not be had.

    Attributes:
        said: Why.
        again: When it is tried next, by the monotonic clock.
        pause: Seconds until then.
    """

    said: str
    again: float
    pause: float


class Looking:
    """Looks at one model of a registry, and remembers what it has checked already."""

    def __init__(self, layout: Layout, model: str, *, shadow: bool) -> None:
        self._layout, self._model, self._shadow = layout, model, shadow
        self._statements: dict[str, Statement] = {}  # newest entry's hash → its statement
        self._there: dict[Path, tuple[int, ...]] = {}  # what a file was when it was checked
        self._failed: dict[Path, _NotFetched] = {}

    def look(self) -> RegistryLook:
        """Return what the registry says now."""
        try:
            return self._look()
        except UserError as error:  # silent, damaged, empty: said, and asked again
            return RegistryLook(shortened((f"registry: {error}",)))

    def _look(self) -> RegistryLook:
        layout, model = self._layout, self._model
        database = sqlite_file(tracking_uri(layout))
        if database and not database.exists() and not is_read_only(tracking_uri(layout)):
            # A command would make an empty one in its place; a server must not.
            raise UserError(f"the database {shown_uri(str(database))} is gone")
        client = connect(layout)
        with answering(layout):
            state = read_state(layout, client, model)
            if state.live is None:
                raise none_live(layout, state)
            last = state.history.last
            assert last is not None
            statement = self._statements.get(last.hash)
            if statement is None:
                statement = required_statement(layout, client, state, state.live)
                self._statements = {last.hash: statement}
        problems = list(warnings(state))
        challenger = self._challenger(state, problems) if self._shadow else None
        try:
            path = cached_file(layout, statement.sha256)
            self._have(path, lambda: released_file(layout, statement))
        except UserError as error:
            return RegistryLook(shortened((f"registry: {error}", *problems)), challenger=challenger)
        if drift := drift_sha256(statement):
            try:
                self._have(cached_drift(layout, drift), lambda: drift_file(layout, statement))
            except UserError as error:  # the version answers all the same
                problems.append(f"drift is not scored: {error}")
        entry = state.history.release_of(state.live) or last
        return RegistryLook(
            shortened(tuple(problems)), last.text(), entry.text(), statement.text, challenger
        )

    def _challenger(self, state: ModelState, problems: list[str]) -> Challenger | None:
        """Return the version that waits for the gates, its file fetched; None if there is none."""
        number = state.aliases.get(CHALLENGER)
        if number is None or number == state.live:
            return None
        layout, model = self._layout, self._model
        try:
            client = connect(layout)
            with answering(layout):
                version = version_or_none(client, model, number)
            if version is None or not version.sha256:
                return None
            path = cached_file(layout, version.sha256)
            self._have(path, lambda: version_file(layout, version))
        except UserError as error:
            problems.append(f"the challenger cannot be asked: {error}")
            return None
        return Challenger(number, version.sha256)

    def _have(self, path: Path, fetch: Callable[[], object]) -> None:
        """Let a file be in the cache and what its name says, unless it was so and is untouched.

        Raises:
            UserError: If it cannot be had; it is tried again after a while.
        """
        failed, now = self._failed.get(path), time.monotonic()
        if failed is not None and now < failed.again:
            raise UserError(failed.said)
        if path in self._there and self._there[path] == _identity(path):
            return
        try:
            fetch()
        except UserError as error:
            pause = 1.0 if failed is None else min(2 * failed.pause, _LONGEST_PAUSE)
            self._failed[path] = _NotFetched(str(error), time.monotonic() + pause, pause)
            raise
        self._failed.pop(path, None)
        self._there = {**dict(list(self._there.items())[-_MOST_FILES:]), path: _identity(path)}


def _identity(path: Path) -> tuple[int, ...]:
    """Return what changes if a file is written or exchanged; nothing if it is gone."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
