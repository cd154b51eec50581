"""`prong repair`: finds what is wrong with a registry, mends what can be, and says what cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.core import tables
from pipelines.core.paths import Layout
from pipelines.provenance import keys
from pipelines.provenance.attachments import DRIFT
from pipelines.registry import history, memory, statements
from pipelines.registry import versions as registry
from pipelines.registry.history import History
from pipelines.registry.state import ModelState, is_about, statement_of, unsigned
from pipelines.registry.version_files import MODEL_FILE, drift_sha256
from pipelines.registry.versions import CHAMPION, PREVIOUS, SHA256
from pipelines.release.transaction import Transaction, transaction
from pipelines.release.upload import put_back, stored_sha256
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import registered_models
from pipelines.systems.scratch import sweep

LEFTOVERS = ("gates", "upload", "sign", "look")
"""Names of the folders in the state directory that killed commands leave."""


@dataclass(frozen=True)
class Repair:
    """One thing that was wrong.

    Attributes:
        what: With what.
        found: What was wrong.
        done: What was done about it, or what to do.
        mended: Whether it is in order now.
    """

    what: str
    found: str
    done: str
    mended: bool


def repair(layout: Layout, model: str, *, begin_anew: bool = False) -> list[Repair]:
    """Mend what can be mended, of one model.

    Args:
        layout: The checkout; what it remembers and has kept is put back.
        model: The registered model's name.
        begin_anew: Whether to give up, by a signed entry, what of the history cannot be put back.

    Returns:
        What was wrong, in the order it was looked at; empty if nothing was.

    Raises:
        UserError: If the store or the key cannot be used.
        Unavailable: If the store does not answer.
    """
    found: list[Repair] = []
    with transaction(layout, model, mend=False) as held:
        found += _history(held)
        if begin_anew:
            found += _begin_anew(held)
        state = held.state()
        found += _damage(state)
        found += _intent(held, state)
        found += _aliases(held)
        state = held.state()
        for number, name in ((state.live, "champion"), (state.previous, "previous")):
            if number is not None:
                found += _version(held, state, number, name)
    found += _leftovers(layout)
    return found


def _history(held: Transaction) -> Iterator[Repair]:
    """Put back entries that this checkout remembers; remove those that nobody signed."""
    state = held.state()
    for entry in state.history.missing:
        held.write(entry)
        said = "was lost or changed"
        yield Repair(f"entry {entry.sequence}", said, "put back from what was seen", True)
    for tag in state.history.strays:
        held.check()
        registered_models.untag_model(held.client, held.model, tag)
        number = int(tag.removeprefix(history.PREFIX))
        yield Repair(f"entry {number}", "no trusted key signed it", "removed", True)


def _damage(state: ModelState) -> Iterator[Repair]:
    """Say what is still wrong with the history."""
    for said in state.history.damage:
        done = (
            "not kept here: put the registry back from a backup, let PRONG_VERIFYING_KEY name the "
            "key that signed, or give it up with `prong repair --begin-anew`"
        )
        yield Repair("history", said, done, False)


def _begin_anew(held: Transaction) -> Iterator[Repair]:
    """Write an entry that nothing before it is needed for."""
    state = held.state()
    if state.unsigned and not state.history.damage:
        return
    lost = not held.is_released(state, state.live)
    if not state.history.damage and not (lost and state.live is not None):
        return
    last = state.history.last
    live = None if lost else state.live
    previous = state.previous if held.is_released(state, state.previous) else None
    entry = held.entry(
        history.BEGUN_ANEW,
        live,
        replaced=state.live,
        previous=previous,
        reason="given up: " + ("; ".join(state.history.damage) or f"version {state.live} is lost"),
        error=None if last is None or lost else last.error,
        sha256="" if last is None or lost else last.sha256,
        statement="" if last is None or lost else last.statement,
    )
    private = keys.signing_key(held.layout, may_make=True)
    whole = state.history if not state.history.damage else History((), (), state.history.next)
    held.write(whole.append(entry, held.model, private))
    if state.history.damage:
        memory.forget(held.layout, held.model)
    said = "no version is live" if live is None else f"v{live} stays live"
    yield Repair("history", entry.reason, f"begun anew: {said}", True)


def _intent(held: Transaction, state: ModelState) -> Iterator[Repair]:
    if not state.bad_intent and state.intent is None:
        return
    if state.unsigned:
        held.done()
        yield Repair("intent", state.bad_intent or "of an earlier version", "removed", True)
        return
    held.repair()
    said = state.bad_intent or f"a {state.intent.command if state.intent else ''} broke off"
    done = "finished" if held.mended is not None else "removed: it cannot be carried out"
    yield Repair("intent", said, done, True)


def _aliases(held: Transaction) -> Iterator[Repair]:
    state = held.state()
    if state.unsigned and not state.history.entries and not state.history.damage:
        for alias in (CHAMPION, PREVIOUS):
            if alias in state.aliases:
                held.move(alias, None)
                said = f"names v{state.aliases[alias]}, and nothing signed says so"
                yield Repair(f"alias {alias}", said, "taken away", True)
        return
    if state.unsigned:
        yield Repair("champion", unsigned(state), "`prong migrate`", False)
        return
    for said in held.put_back_aliases():
        yield Repair("alias", said.partition(":")[0], "put back", True)


def _version(held: Transaction, state: ModelState, number: int, name: str) -> Iterator[Repair]:
    """Put back what a version that may be answered from has lost."""
    layout, what = held.layout, f"{name} v{number}"
    version = registry.version_or_none(held.client, held.model, number)
    tags = {} if version is None else version.tags
    statement = statement_of(layout, state, number, tags)
    if version is None:
        way = "put the registry back from a backup, or `prong rollback`"
        way += ", or `prong repair --begin-anew` and `prong run`" if name == "champion" else ""
        yield Repair(what, "is gone from the registry", way, False)
        return
    if statement is None:
        way = "`prong rollback` to another version, or `prong repair --begin-anew` to have none"
        yield Repair(what, "no statement that holds says that it was let through", way, False)
        return
    if not is_about(statement, version):
        way = "put the registry back from a backup, or `prong repair --begin-anew`"
        yield Repair(what, "the registry has another version of this number", way, False)
        return
    if not _carries(version, statement, state):
        held.write_statement(statement)
        yield Repair(what, "its signed statement was lost", "put back from what was seen", True)
    if version.tags.get(SHA256) != statement.sha256:
        held.check()
        registered_models.tag_version(held.client, held.model, number, SHA256, statement.sha256)
        yield Repair(what, f"its tag {SHA256} was changed", "put back", True)
    if version.tags.get(registry.COMPLETE) != "true":
        held.check()
        registered_models.tag_version(held.client, held.model, number, registry.COMPLETE, "true")
        yield Repair(what, f"its tag {registry.COMPLETE} was changed", "put back", True)
    files = [("its file", MODEL_FILE, statement.sha256, ", or `prong rollback`")]
    if drift := drift_sha256(statement):
        files.append(("its drift graph", DRIFT, drift, "; until then its drift is not scored"))
    for called, file, sha256, else_ in files:
        found = stored_sha256(layout, version, file)
        if found == sha256:
            continue
        said = f"{called} {'was exchanged or damaged' if found else 'is gone from the store'}"
        held.check()
        if put_back(layout, version, sha256, file):
            yield Repair(what, said, "uploaded again from what is kept here", True)
        else:
            yield Repair(what, said, f"put {sha256[:12]}… back from a backup{else_}", False)


def _carries(version: registry.Version, statement: statements.Statement, state: ModelState) -> bool:
    """Say whether a version carries its statement, by whichever trusted key it is signed."""
    found = statements.find(
        version.tags,
        state.trusted,
        model=statement.model,
        version=statement.version,
        wanted=statement.hash,
    )
    return found is not None


def _leftovers(layout: Layout) -> Iterator[Repair]:
    for name in LEFTOVERS:
        for path in sweep(layout.state, name):
            yield Repair(f".prong/{path.name}", "a killed command left it", "removed", True)
    closed = tracking.close_dead_runs(layout)
    if closed:
        said = f"{len(closed)} MLflow runs stood as running, and their processes are gone"
        yield Repair("runs", said, "closed", True)


def show(model: str, found: list[Repair]) -> bool:
    """Print what was done; say whether all is in order."""
    console = tables.console()
    if not found:
        console.print(f"{model}: nothing is wrong", markup=False)
        return True
    rows = [(one.what, one.found, one.done, "yes" if one.mended else "no") for one in found]
    columns = ("what", "found", "done", "mended")
    console.print(tables.table(columns, rows, title=model, whole=("mended",)))
    return all(one.mended for one in found)
