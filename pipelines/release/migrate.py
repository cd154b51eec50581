"""`prong migrate`: a registry of the time before signed statements goes on.

Its champion and all versions that were live before are held to the gates as they stand now. Those
that pass get a statement; the history goes on with a signed entry, which by the hashes pins all
entries before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.core.config import Params
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.paths import Layout
from pipelines.gates.finding import blocked
from pipelines.provenance import keys, signing
from pipelines.registry import history, version_files
from pipelines.registry import versions as registry
from pipelines.registry.history import History
from pipelines.registry.state import ModelState, read_state
from pipelines.registry.versions import CHAMPION, PREVIOUS, Version
from pipelines.release.decision import Case, judged
from pipelines.release.let_through import sign_beside, statement_about
from pipelines.release.transaction import Transaction, transaction
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts
from pipelines.systems.scratch import scratch


@dataclass(frozen=True)
class _Taken:
    """A version that is taken over; without a case a person vouches for it."""

    version: Version
    case: Case | None


def migrate(
    layout: Layout, params: Params, *, as_is: bool, say: Callable[[str], None]
) -> int | None:
    """Take over the champion of a registry whose history nobody signed.

    Args:
        layout: The checkout; its gate split decides.
        params: `registry.model` and `gates`.
        as_is: Whether the champion is taken over though it does not pass the gates, or its list
            was changed: the holder of the key vouches for it.
        say: Called with each line of what is done.

    Returns:
        The champion; None if there was none.

    Raises:
        UserError: If there is nothing to take over, or the champion does not pass.
        Unavailable: If the store does not answer.
    """
    model, client = params.model_name, tracking.connect(layout)
    with tracking.answering(layout):
        state = read_state(layout, client, model)
        rows = {version.number: version for version in registry.versions(client, model)}
    _require_unsigned(state, as_is)
    live, previous = _named(state, rows)
    wanted = [live, previous, *sorted(state.history.lived, reverse=True)]
    taken: dict[int, _Taken] = {}
    for number in dict.fromkeys(n for n in wanted if n in rows):
        assert number is not None
        refused, case = _looked_at(layout, params, state, rows[number])
        if not refused:
            taken[number] = _Taken(rows[number], case)
            say(f"v{number}: every gate lets it through")
        elif number == live and as_is:
            taken[number] = _Taken(rows[number], None)
            say(f"v{number}: taken over as it is, though {refused}")
        else:
            say(f"v{number}: not taken over: {refused}")
    if live is not None and live not in taken:
        raise UserError(
            f"{model}: the champion, v{live}, does not pass the gates; nothing was changed; "
            "`prong migrate --as-is` takes it over all the same, on your word"
        )
    with transaction(layout, model, mend=False) as held:
        found = held.state()
        if found.history != state.history or found.aliases != state.aliases:
            raise UserError(f"{model}: others changed it meanwhile; run `prong migrate` again")
        _take_over(held, params, found, taken, live, previous if previous in taken else None)
    return live


def _require_unsigned(state: ModelState, as_is: bool) -> None:
    if state.history.signed or state.known.entries:
        raise UserError(
            f"{state.model}: nothing to take over: its history is signed, here or as this "
            "checkout remembers it; `prong repair` mends what was changed"
        )
    if not state.unsigned:
        raise UserError(f"{state.model}: nothing to take over: no version is champion")
    if state.history.damage and not as_is:
        raise UserError(
            f"{state.model}: its list was changed: {'; '.join(state.history.damage)}; "
            "`prong migrate --as-is` takes over the champion all the same, on your word"
        )


def _named(state: ModelState, rows: dict[int, Version]) -> tuple[int | None, int | None]:
    """Return the champion and the one before, by the list or, where there is none, the aliases."""
    if state.history.entries:
        last = state.history.entries[-1]
        return last.version, last.previous
    return state.aliases.get(CHAMPION), state.aliases.get(PREVIOUS)


def _looked_at(
    layout: Layout, params: Params, state: ModelState, version: Version
) -> tuple[str, Case | None]:
    """Return why a version is not taken over (empty: it is), and what the gates found."""
    if not version.complete:
        return "its registration is not complete", None
    try:
        with scratch(layout.state, "sign") as folder:
            where = version_files.location(layout, version)
            file, bundle = folder / version_files.MODEL_FILE, folder / version_files.SIGNATURE
            if artifacts.download(layout, where, file.name, file) != version.sha256:
                return "the registry's file is not the one that was registered", None
            artifacts.download(layout, where, bundle.name, bundle)
            signing.verify(layout, file, bundle)
    except Unavailable:
        raise
    except UserError as error:
        return str(error), None
    known = {e.sha256 for e in state.history.entries if e.version == version.number}
    if known and version.sha256 not in known:
        return "its bytes are not those that were live", None
    case = judged(layout, params, state, version)
    stopped = blocked(case.findings)
    return ("; ".join(f"{f.gate}: {f.reason}" for f in stopped), case)


def _take_over(
    held: Transaction,
    params: Params,
    state: ModelState,
    taken: dict[int, _Taken],
    live: int | None,
    previous: int | None,
) -> None:
    layout = held.layout
    private = keys.signing_key(layout, may_make=True)
    made = {}
    for number, one in sorted(taken.items()):
        findings = () if one.case is None else one.case.findings
        statement = statement_about(
            layout, params, one.version, findings, held_against=None, run=""
        ).signed(private)
        with scratch(layout.state, "sign") as folder:
            sign_beside(layout, one.version, statement, folder)
        held.write_statement(statement)
        made[number] = statement
    champion = made.get(live) if live is not None else None
    entry = held.entry(
        history.MIGRATED,
        live,
        replaced=live,
        previous=previous,
        reason="taken over from the time before signed statements"
        + ("" if live is None or taken[live].case else "; as it was, not by the gates"),
        error=None if champion is None else champion.error,
        sha256="" if champion is None else champion.sha256,
        statement="" if champion is None else champion.hash,
    )
    before = History((), (), state.history.next) if state.history.damage else state.history
    held.write(before.append(entry, held.model, private))
    if held.state().bad_intent:
        held.done()
    held.put_back_aliases()
