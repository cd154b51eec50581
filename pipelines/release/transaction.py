"""Changes of a registered model: one at a time, each written down as an intent before it is made.

Before anything changes, a signed intent says what is to be: these aliases and this entry of the
history, or a version of these bytes. A process that dies leaves the intent behind; the next
process to hold the lease carries it out or drops it, before doing anything else. Every step may be
taken twice, and is taken only by the process that still holds the lease.
"""

from __future__ import annotations

import getpass
import logging
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.core import faults
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history, memory, statements
from pipelines.registry import versions as registry
from pipelines.registry.history import Entry
from pipelines.registry.intents import INTENT, Intent
from pipelines.registry.state import ModelState, is_about, read_state, statement_of
from pipelines.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, Version
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import MlflowClient, registered_models
from pipelines.systems.mlflow.leases import Lease, leased

_log = logging.getLogger(__name__)


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
        return read_state(self.layout, self.client, self.model)

    def version(self, number: int) -> Version:
        """Return one version; see `registry.get_version`."""
        return registry.get_version(self.client, self.model, number)

    def key(self) -> Path:
        """Return the release key; the checkout's own is made where nothing was ever signed.

        Raises:
            LostKey: If it is not here.
        """
        found = self.state()
        fresh = not (found.history.entries or found.history.damage or found.known.entries)
        return keys.signing_key(self.layout, may_make=fresh)

    def is_complete(self, number: int | None) -> bool:
        """Say whether there is such a version and it is complete."""
        if number is None:
            return False
        found = registry.version_or_none(self.client, self.model, number)
        return found is not None and found.complete

    def is_released(self, state: ModelState, number: int | None) -> bool:
        """Say whether there is such a version, complete and with a statement that holds."""
        if number is None:
            return False
        found = registry.version_or_none(self.client, self.model, number)
        if found is None or not found.complete:
            return False
        statement = statement_of(self.layout, state, number, found.tags)
        return statement is not None and is_about(statement, found)

    def intend(self, intent: Intent) -> Intent:
        """Write down what is to be, signed; return it so."""
        signed = intent.signed(self.model, self.key())
        self.check()
        if intent.command == "register":
            registered_models.ensure_model(self.client, self.model)
        registered_models.tag_model(self.client, self.model, INTENT, signed.text())
        return signed

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
        """Sign an entry and write it as the next of the history, once."""
        known = self.state().history
        if not known.has(entry.intent):
            self.write(known.append(entry, self.model, self.key()))

    def write(self, entry: Entry) -> None:
        """Write an entry that has its place and its signature."""
        self.check()
        key, text = history.tag_key(entry.sequence), entry.text()
        registered_models.ensure_model(self.client, self.model)
        registered_models.tag_model(self.client, self.model, key, text)
        self.state()  # remembers it

    def write_statement(self, statement: statements.Statement) -> None:
        """Write a signed statement onto its version."""
        self.check()
        key = statements.tag_key(statement.hash)
        number, text = statement.version, statement.text
        registered_models.tag_version(self.client, self.model, number, key, text)
        memory.remember(self.layout, self.model, self.state().history.entries, {key: text})

    def carry_out(self, intent: Intent) -> None:
        """Move the aliases, write the entry, delete the intent; each only if not yet done."""
        assert intent.aliases is not None
        assert intent.entry is not None
        aliases = self.state().aliases
        for alias, number in intent.aliases.items():
            if aliases.get(alias) != number:
                self.move(alias, number)
            faults.point(f"{intent.command}.{alias}")
        self.append(intent.entry)
        faults.point(f"{intent.command}.history")
        self.done()

    def repair(self) -> None:
        """Finish what a dead process began, and put the aliases where the history says.

        What cannot be relied on is not touched: `prong repair` and `prong migrate` see to it. Where
        there is no key to sign with, nothing is: whoever has one will mend it.
        """
        if not keys.has_key(self.layout):
            return
        state = self.state()
        if state.bad_intent:
            self._drop(state, f"{state.bad_intent}; it was removed")
        elif state.intent is not None and state.intent.command == "register":
            self.finish_registration(state.intent)
            self.mended = state.intent
        elif state.intent is not None:
            self._finish(state, state.intent)
        self.put_back_aliases()

    def _finish(self, state: ModelState, intent: Intent) -> None:
        """Carry out an intent, unless it is of another time or what it needs is gone."""
        assert intent.entry is not None
        last = state.history.last
        if state.history.has(intent.id):
            if last is not None and last.intent == intent.id:
                self.carry_out(intent)
                self.mended = intent
            else:  # carried out long ago, and put here again
                self.done()
            return
        target = intent.entry.version
        if intent.after != ("" if last is None else last.hash):
            said = "it was written on another history"
        elif not self._can_answer(target, intent.entry.statement):
            said = f"version {target} is gone or was never let through"
        else:
            self.carry_out(intent)
            self.mended = intent
            return
        self._drop(state, f"an unfinished {intent.command} cannot be carried out: {said}")

    def _can_answer(self, number: int | None, statement: str) -> bool:
        found = (
            None if number is None else registry.version_or_none(self.client, self.model, number)
        )
        if found is None or not found.complete:
            return False
        trusted = keys.trusted_keys(self.layout)
        return (
            statements.find(
                found.tags, trusted, model=self.model, version=found.number, wanted=statement
            )
            is not None
        )

    def _drop(self, state: ModelState, said: str) -> None:
        """Delete an intent that cannot be carried out, and write down that it was."""
        _log.warning("%s: %s", self.model, said)
        last = state.history.last
        if last is not None and not state.history.damage:
            self.append(self.same(last, history.DROPPED, said))
        self.done()

    def put_back_aliases(self) -> tuple[str, ...]:
        """Let `champion` and `previous` name what the history says; return what was moved."""
        state = self.state()
        if state.unsigned or state.history.damage or state.agrees:
            return ()
        moved = []
        for alias, wanted in ((PREVIOUS, state.previous), (CHAMPION, state.live)):
            found = state.aliases.get(alias)
            if found == wanted and alias not in state.bad_aliases:
                continue
            if wanted is not None and not self.is_complete(wanted):
                continue  # MLflow would refuse it; `prong doctor` names the lost version
            self.move(alias, wanted)
            was, now = _shown(found), _shown(wanted)
            moved.append(f"alias {alias} named {was}; the history says {now}: put back")
        for said in moved:
            _log.warning("%s: %s", self.model, said)
        return tuple(moved)

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
        sha256: str = "",
        statement: str = "",
    ) -> Entry:
        """Return an entry of the history that has no place in it yet."""
        return Entry(
            sequence=0,
            time=now(),
            event=event,
            version=version,
            replaced=replaced,
            previous=previous,
            by=who(),
            run=run,
            reason=" ".join(reason.split())[: history.LONGEST_REASON],
            sha256=sha256,
            error=error,
            intent=uuid.uuid4().hex,
            statement=statement,
        )

    def same(self, last: Entry, event: str, reason: str) -> Entry:
        """Return an entry that leaves what is live as the newest one has it."""
        return self.entry(
            event,
            last.version,
            replaced=last.version,
            previous=last.previous,
            reason=reason,
            error=last.error,
            sha256=last.sha256,
            statement=last.statement,
        )


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def who() -> str:
    """Return user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a process of a user without a name, as in containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:300]


def _shown(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


@contextmanager
def transaction(layout: Layout, model: str, *, mend: bool = True) -> Iterator[Transaction]:
    """Begin the one transaction on a model; what another left half-done is mended first.

    Args:
        layout: The checkout.
        model: The registered model's name.
        mend: Whether to do so.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer, or others hold the lease for too long.
    """
    client = tracking.connect(layout)
    with leased(layout, f"registry {model}") as lease, tracking.answering(layout):
        assert lease is not None
        found = Transaction(layout, client, model, lease)
        if mend:
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
        state = read_state(layout, client, model)
        unfinished = state.intent is not None or state.bad_intent or not state.agrees
        if state.unsigned or not unfinished or not keys.has_key(layout):
            return state
        with leased(layout, f"registry {model}", patience=0) as lease:
            if lease is not None:
                Transaction(layout, client, model, lease).repair()
        return read_state(layout, client, model)
