"""How a registered model stands: the signed history is the truth, the aliases are its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.registry import history, intents, memory, outside, statements
from pipelines.registry.history import History
from pipelines.registry.intents import INTENT, Intent
from pipelines.registry.statements import Statement
from pipelines.registry.versions import CHAMPION, PREVIOUS, Version
from pipelines.systems.mlflow import MlflowClient, registered_models


@dataclass(frozen=True)
class ModelState:
    """A registered model as it stands.

    Attributes:
        model: Its name.
        exists: Whether the registry has it.
        aliases: Alias → version; a cache that anyone may have changed.
        history: What was live, and is.
        intent: What a command began, signed; or None.
        bad_intent: What is wrong with the intent's tag; empty if nothing is.
        bad_aliases: Aliases that name no version's number.
        trusted: The public keys whose signatures count, as PEM.
        known: What this checkout saw before.
    """

    model: str
    exists: bool
    aliases: Mapping[str, int]
    history: History
    intent: Intent | None
    bad_intent: str
    bad_aliases: tuple[str, ...]
    trusted: tuple[bytes, ...]
    known: memory.Memory = field(default_factory=memory.Memory)

    @property
    def live(self) -> int | None:
        """The champion, by the history."""
        return self.history.live

    @property
    def previous(self) -> int | None:
        """The champion before, by the history."""
        return None if self.history.last is None else self.history.last.previous

    @property
    def agrees(self) -> bool:
        """Whether the aliases are those of the history's last entry."""
        found = (self.aliases.get(CHAMPION), self.aliases.get(PREVIOUS))
        wrong = {CHAMPION, PREVIOUS} & set(self.bad_aliases)
        return not wrong and found == (self.live, self.previous)

    @property
    def unsigned(self) -> bool:
        """Whether this is a registry of the time before signed statements, with a champion."""
        if self.history.signed or self.history.foreign or self.intent is not None:
            return False  # the first promotion may have died after it moved the alias
        listed = any(entry.version is not None for entry in self.history.entries)
        return listed or CHAMPION in self.aliases

    @property
    def is_well(self) -> bool:
        """Whether there is nothing to mend."""
        return (
            self.agrees
            and self.intent is None
            and not self.bad_intent
            and not self.history.damage
            and not self.unsigned
        )


def read_state(layout: Layout, client: MlflowClient, model: str) -> ModelState:
    """Return how a registered model stands, and remember what is signed of it.

    Raises:
        UserError: If a setting of a key is wrong.
        Unavailable: Where called within `answering`, if the registry does not answer.
    """
    found = registered_models.find_model(client, model)
    trusted, known = tuple(keys.trusted_keys(layout)), memory.recall(layout, model)
    tags = {} if found is None else dict(found.tags)
    aliases, bad = outside.aliases({} if found is None else found.aliases)
    listed = history.read(tags, model, trusted, known.entries)
    intent = intents.read(tags.get(INTENT), model, trusted)
    if listed.signed:
        memory.remember(layout, model, listed.entries, {})
    return ModelState(
        model,
        found is not None,
        aliases,
        listed,
        intent.intent,
        intent.wrong,
        bad,
        trusted,
        known,
    )


def require_sound(state: ModelState) -> None:
    """Refuse to change what is live while the history cannot be relied on.

    Raises:
        UserError: If it was changed, or is of the time before signed statements; the message names
            the command that helps.
    """
    if state.unsigned:
        raise UserError(unsigned(state))
    if state.history.damage:
        way = (
            "let PRONG_VERIFYING_KEY and PRONG_SIGNING_KEY name the keys of those who share the "
            "registry (docs/provenance.md)"
            if state.history.foreign
            else "`prong repair` mends it"
        )
        raise UserError(
            f"{state.model}: its history cannot be relied on: {'; '.join(state.history.damage)}; "
            f"nothing was changed; {way}"
        )


def unsigned(state: ModelState) -> str:
    """Return what to do about a registry whose champion no statement names."""
    named = state.aliases.get(CHAMPION)
    said = "" if named is None else f" (an alias names version {named})"
    return (
        f"{state.model}: no signed statement says what is live{said}: the registry is of an "
        "earlier version of this program, or others moved the alias; `prong migrate` holds the "
        "champion to the gates and takes it over, `prong repair` takes the alias away"
    )


def statement_of(
    layout: Layout, state: ModelState, number: int, tags: Mapping[str, str]
) -> Statement | None:
    """Return the statement by which a version was released; None if there is none that holds.

    Args:
        layout: The checkout; what is found is remembered.
        state: Of the model.
        number: The version's.
        tags: The version's, as the registry has them; empty if the registry lost it.
    """
    for texts in (tags, state.known.statements):
        found = _statement_in(state, number, texts)
        if found is not None:
            kept = {statements.tag_key(found.hash): found.text}
            memory.remember(layout, state.model, state.history.entries, kept)
            return found
    return None


def is_about(statement: Statement, version: Version) -> bool:
    """Say whether a statement is about this very version, not one that had its number before."""
    return statement.created == version.created.isoformat(timespec="milliseconds")


def _statement_in(state: ModelState, number: int, texts: Mapping[str, str]) -> Statement | None:
    """Return the statement on a version whose bytes the history names; None if none holds.

    The newest entry about a version that names a statement decides. Entries of the time before
    statements name the bytes alone; taking them over gave such versions a statement.
    """
    entry = state.history.release_of(number)
    if entry is not None:
        wanted, hashes = [entry.statement], {entry.sha256}
    else:
        made = map(
            statements.parsed,
            (texts[key] for key in sorted(texts) if key.startswith(statements.PREFIX)),
        )
        wanted = [statement.hash for statement in made if statement is not None]
        hashes = {e.sha256 for e in state.history.entries if e.version == number}
    for one in wanted:
        found = statements.find(texts, state.trusted, model=state.model, version=number, wanted=one)
        if found is not None and found.sha256 in hashes:
            return found
    return None
