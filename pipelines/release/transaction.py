"""Changes of a registered model: one at a time, each written down as an intent before it is made.

Before anything changes, an intent says what is to be: these aliases and this entry of the history,
or a version of these bytes. A process that dies leaves the intent behind; the next
process to hold the lease carries it out or undoes it, before doing anything else. Every step may be
taken twice, and is taken only by the process that still holds the lease.
"""

from __future__ import annotations

import getpass
import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipelines.core import faults
from pipelines.core.paths import Layout
from pipelines.registry import history
from pipelines.registry import versions as registry
from pipelines.registry.history import Entry
from pipelines.registry.intents import INTENT, Intent, ModelState
from pipelines.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Version
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import MlflowClient, registered_models
from pipelines.systems.mlflow.leases import Lease, leased


def read_state(client: MlflowClient, model: str) -> ModelState:
    """Return how a registered model stands; empty if there is none."""
    found = registered_models.find_model(client, model)
    if found is None:
        return ModelState({}, history.read({}), None)
    tags = dict(found.tags)
    intent = Intent.parse(tags[INTENT]) if INTENT in tags else None
    aliases = {alias: int(number) for alias, number in found.aliases.items()}
    return ModelState(aliases, history.read(tags), intent)


class Transaction:
    """The right to change a registered model, held by one process at a time.

    Attributes:
        layout: The checkout.
        client: MLflow's.
        model: The registered model's name.
        mended: The intent of a dead process that was carried out on taking over, or None.
    """

    def __init__(self, layout: Layout, client: MlflowClient, model: str, lease: Lease) -> None:
        self.layout, self.client, self.model = layout, client, model
        self.mended: Intent | None = None
        self._lease = lease

    @property
    def check(self) -> Any:
        """Raises `LeaseLost` when called if another has taken over."""
        return self._lease.check

    def state(self) -> ModelState:
        """Return how the model stands."""
        return read_state(self.client, self.model)

    def version(self, number: int) -> Version:
        """Return one version; see `registry.get_version`."""
        return registry.get_version(self.client, self.model, number)

    def is_complete(self, number: int | None) -> bool:
        """Say whether there is such a version and it is complete."""
        if number is None:
            return False
        found = registry.version_or_none(self.client, self.model, number)
        return found is not None and found.complete

    def intend(self, intent: Intent) -> None:
        """Write down what is to be."""
        self.check()
        if intent.command == "register":
            registered_models.ensure_model(self.client, self.model)
        text = json.dumps(asdict(intent), ensure_ascii=False, separators=(",", ":"))
        registered_models.tag_model(self.client, self.model, INTENT, text)

    def done(self) -> None:
        """Delete the intent: all of it is done."""
        self.check()
        registered_models.untag_model(self.client, self.model, INTENT)

    def move(self, alias: str, number: int | None) -> None:
        """Let an alias name a version, or take it away."""
        self.check()
        if number is None:
            registered_models.delete_alias(self.client, self.model, alias)
        else:
            registered_models.set_alias(self.client, self.model, alias, number)

    def append(self, entry: Entry) -> None:
        """Write an entry of the history, once."""
        known = self.state().history
        if not known.has(entry.intent):
            self.check()
            key, value = known.append(entry).tag()
            registered_models.tag_model(self.client, self.model, key, value)

    def carry_out(self, intent: Intent) -> None:
        """Move the aliases, write the entry, delete the intent; each only if not yet done."""
        assert intent.aliases is not None
        assert intent.entry is not None
        aliases = self.state().aliases
        for alias, number in intent.aliases.items():
            if aliases.get(alias) != number:
                self.move(alias, number)
            faults.point(f"{intent.command}.{alias}")
        self.append(Entry(**intent.entry))
        faults.point(f"{intent.command}.history")
        self.done()

    def repair(self) -> None:
        """Finish what a dead process began; record what was changed by other means."""
        state = self.state()
        if state.intent is not None and state.intent.command == "register":
            self.finish_registration(state.intent)
        elif state.intent is not None:
            self.carry_out(state.intent)
        self.mended = state.intent
        state = self.state()
        if not state.agrees:
            self._adopt(state)

    def finish_registration(self, intent: Intent) -> None:
        """Complete the version of an intent and make it challenger, or remove it."""
        from pipelines.release import upload

        for version in registry.versions(self.client, self.model):
            if version.sha256 != intent.sha256:
                continue
            self.check()
            if version.complete or upload.finish(self.layout, self.client, version):
                lived = self.state().history.lived
                if version.number not in lived and not version.aliases:
                    self.move(CHALLENGER, version.number)
        self.done()

    def _adopt(self, state: ModelState) -> None:
        """Record aliases that others moved; undo a move to a version that is not complete."""
        last, aliases = state.history.last, dict(state.aliases)
        for alias, number in state.aliases.items():
            if alias in (CHAMPION, PREVIOUS) and not self.is_complete(number):
                known = None if last is None else getattr(last, _FIELD[alias])
                back = known if self.is_complete(known) else None
                self.move(alias, back)
                aliases.pop(alias) if back is None else aliases.update({alias: back})
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if last is not None and (last.version, last.previous) == (champion, previous):
            return
        if last is None and champion is None:
            if previous is not None:
                self.move(PREVIOUS, None)
            return
        entry = self.entry(
            history.FOUND if last is None else history.MOVED,
            champion,
            replaced=None if last is None else last.version,
            previous=previous,
            reason="was champion before the history began"
            if last is None
            else "the aliases were moved by other means than this program",
        )
        self.append(entry)

    def entry(
        self,
        event: str,
        version: int | None,
        *,
        replaced: int | None,
        previous: int | None,
        reason: str,
        run: str = "",
        error: float | None = None,
    ) -> Entry:
        """Return an entry of the history that has no place in it yet."""
        return Entry(
            sequence=0,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            event=event,
            version=version,
            replaced=replaced,
            previous=previous,
            by=f"{_user()}@{socket.gethostname()}",
            run=run,
            reason=" ".join(reason.split())[: history.LONGEST_REASON],
            sha256="" if version is None else self.version(version).sha256,
            error=error,
            intent=uuid.uuid4().hex,
        )


_FIELD = {CHAMPION: "version", PREVIOUS: "previous"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a process of a user without a name, as in containers
        return "unknown"


@contextmanager
def transaction(layout: Layout, model: str) -> Iterator[Transaction]:
    """Begin the one transaction on a model; what another left half-done is mended first.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer, or others hold the lease for too long.
    """
    client = tracking.connect(layout)
    with leased(layout, f"registry {model}") as lease, tracking.answering(layout):
        assert lease is not None
        found = Transaction(layout, client, model, lease)
        found.repair()
        yield found


def repaired_state(layout: Layout, model: str) -> ModelState:
    """Return how a model stands, mended first unless another is at work on it now.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    client = tracking.connect(layout)
    with tracking.answering(layout):
        state = read_state(client, model)
        if state.agrees and state.intent is None:
            return state
        with leased(layout, f"registry {model}", patience=0) as lease:
            if lease is not None:
                Transaction(layout, client, model, lease).repair()
        return read_state(client, model)
