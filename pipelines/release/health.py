"""Whether the champion can be served, and what is wrong with the registry around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.gates.finding import blocked
from pipelines.provenance.attachments import DRIFT
from pipelines.registry import history
from pipelines.registry import versions as registry
from pipelines.registry.state import ModelState, is_about, read_state, statement_of, unsigned
from pipelines.registry.version_files import drift_sha256
from pipelines.registry.versions import CHALLENGER, Version
from pipelines.release.upload import stored_sha256
from pipelines.systems import mlflow as tracking

REPAIR = "`prong repair` mends it"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        what: With what.
        said: What is wrong with it.
        way_on: What helps.
        serves: Whether the champion is answered from all the same.
    """

    what: str
    said: str
    way_on: str
    serves: bool = True

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{self.what}: {self.said}; {self.way_on}"


@dataclass(frozen=True)
class Standing:
    """How a model stands.

    Attributes:
        model: Its name.
        version: The champion, or None.
        since: Since when, UTC, ISO 8601; None without a champion.
        by: Who made it champion.
        reason: Why.
        challenger: The version that was registered last and is not live, or None.
        challenger_reason: Why it is not live, as far as is known.
        problems: All that is wrong.
    """

    model: str
    version: int | None
    since: str | None
    by: str
    reason: str
    challenger: int | None
    challenger_reason: str
    problems: tuple[Problem, ...]


def standing(layout: Layout, model: str) -> Standing:
    """Return how a model stands, after the champion was looked at as `predict` would.

    Its file is looked for in the store, not in the cache.

    Raises:
        UserError: If the store or a key cannot be used.
        Unavailable: If the registry does not answer.
    """
    client = tracking.connect(layout)
    with tracking.answering(layout):
        state = read_state(layout, client, model)
        rows = {version.number: version for version in registry.versions(client, model)}
    problems = tuple(_problems(layout, state, rows))
    entry = _came_live(state)
    number = state.aliases.get(CHALLENGER)
    challenger = rows.get(number) if number is not None else None
    return Standing(
        model=model,
        version=state.live,
        since=None if entry is None or state.live is None else entry.time,
        by="" if entry is None else entry.by,
        reason="" if entry is None else entry.reason,
        challenger=None if challenger is None else challenger.number,
        challenger_reason="" if challenger is None else _held_up(challenger),
        problems=problems,
    )


def kept_well(layout: Layout, model: str) -> tuple[Problem, ...]:
    """Return what is wrong with a model, after the champion's file was put back if it was lost.

    Raises:
        UserError: If the store or a key cannot be used.
        Unavailable: If the registry does not answer.
    """
    found = standing(layout, model).problems
    if all(problem.serves for problem in found):
        return found
    from pipelines.release.repair import repair

    repair(layout, model)
    return standing(layout, model).problems


def _came_live(state: ModelState) -> history.Entry | None:
    """Return the entry by which the champion came live; later ones may leave it as it is."""
    found = None
    for entry in reversed(state.history.entries):
        if found is not None and entry.version != found.version:
            break
        found = entry
        if entry.replaced != entry.version:
            break
    return found


def _held_up(version: Version) -> str:
    if not version.complete:
        return "its registration is not complete"
    stopped = blocked(version.findings)
    if not version.findings:
        return "it was not put before the gates"
    names = ", ".join(finding.gate for finding in stopped)
    return f"blocked by {names}" if stopped else "the gates let it through; `prong promote`"


def _problems(layout: Layout, state: ModelState, rows: dict[int, Version]) -> Iterator[Problem]:
    for said in state.history.damage:
        yield Problem("history", said, REPAIR, serves=state.live is not None)
    if state.unsigned:
        yield Problem("champion", unsigned(state), "nothing is answered until then", serves=False)
        return
    if state.bad_intent:
        yield Problem("intent", state.bad_intent, REPAIR)
    elif state.intent is not None:
        said = f"a {state.intent.command} is under way or broke off"
        yield Problem("intent", said, "the next command finishes it")
    yield from _alias_problems(state)
    yield from _champion_problems(layout, state, rows)


def _alias_problems(state: ModelState) -> Iterator[Problem]:
    for alias, wanted in ((registry.CHAMPION, state.live), (registry.PREVIOUS, state.previous)):
        found = state.aliases.get(alias)
        if alias in state.bad_aliases:
            yield Problem(f"alias {alias}", "names no version's number", REPAIR)
        elif found != wanted:
            was, now = (f"v{n}" if n is not None else "none" for n in (found, wanted))
            said = f"names {was}, the history says {now}; it is not obeyed"
            yield Problem(f"alias {alias}", said, REPAIR)


def _champion_problems(
    layout: Layout, state: ModelState, rows: dict[int, Version]
) -> Iterator[Problem]:
    number = state.live
    if number is None:
        return
    name = f"champion v{number}"
    version = rows.get(number)
    statement = statement_of(layout, state, number, {} if version is None else version.tags)
    if statement is None:
        said = "no signed statement that holds says that the gates let it through"
        yield Problem(name, said, REPAIR, serves=False)
        return
    if version is None:
        said = "is gone from the registry"
        yield Problem(name, said, "`prong rollback` goes to the version before", serves=False)
        return
    if not is_about(statement, version):
        said = "the registry has another version of this number"
        yield Problem(name, said, "`prong repair` says what helps", serves=False)
        return
    try:
        found = stored_sha256(layout, version)
    except Unavailable:
        raise
    except UserError as error:
        yield Problem(name, str(error), REPAIR, serves=False)
        return
    if found != statement.sha256:
        said = "its file is not in the store" if not found else "its file was exchanged or damaged"
        way = f"{REPAIR} where the file is still here, else `prong rollback`"
        yield Problem(name, said, way, serves=False)
    elif version.sha256 != statement.sha256:
        yield Problem(name, "its tag onnx_sha256 is not that of its statement", REPAIR)
    drift = drift_sha256(statement)
    if drift and stored_sha256(layout, version, DRIFT) != drift:
        yield Problem(name, "its drift graph is not in the store, or is another one", REPAIR)
