"""Promote and roll back: which version is live, by the gates or back to one that was.

Both write down what is to be before they move an alias; see `pipelines/release/transaction.py`.
Heavy imports stand inside the functions: a rollback is to take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.core import faults
from pipelines.core.config import Params
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.registry import history
from pipelines.release.decision import (
    Case,
    Decision,
    blocked_by,
    figures_of,
    gate_inputs,
    judged,
    known,
    nothing_new,
    write_findings,
)

if TYPE_CHECKING:  # MLflow and the gates are imported when a step is called, not with the flow
    from pipelines.registry.state import ModelState
    from pipelines.registry.statements import Statement
    from pipelines.registry.versions import Version
    from pipelines.release.transaction import Transaction


@dataclass(frozen=True)
class _Request:
    """The arguments of `promote`."""

    version: int | None
    run: str
    asked: bool


@dataclass(frozen=True)
class Rollback:
    """What `rollback` came to.

    Attributes:
        model: The registered model's name.
        version: Champion from now on.
        replaced: The champion before, or None.
        previous: What the alias `previous` names from now on, or None.
    """

    model: str
    version: int
    replaced: int | None
    previous: int | None


_TRIES = 3
"""How often a version is judged when another becomes champion meanwhile."""


def promote(
    layout: Layout, params: Params, version: int | None, run: str = "", *, asked: bool = False
) -> Decision:
    """Make a version champion if every gate lets it pass.

    The version is judged first, without the lease of the model, so that no rollback and no
    registration waits for a judgement. Then the lease is taken, and if the champion is still the
    one it was held against, the statement is signed and the version goes live; else it is judged
    again. Promotions wait for each other, by a lease of their own: else the slowest of many would
    be judged for ever.

    A version that was champion before does not come back by itself, only if it is asked for: it
    was rolled back from, or replaced by a better one.

    Args:
        layout: The checkout; its gate split decides.
        params: `registry.model` and `gates`.
        version: The version to judge; None takes the challenger.
        run: Prefect's id of the run, or empty.
        asked: Whether a person asked for just this version: its gates are run again.

    Raises:
        UserError: If the version or the gate split is absent, the history cannot be relied on, or
            the store cannot be used.
        Failed: If others moved the champion each time.
        Unavailable: If the store does not answer.
    """
    from pipelines.release.transaction import transaction
    from pipelines.systems.mlflow import connect
    from pipelines.systems.mlflow.leases import leased

    model, request = params.model_name, _Request(version, run, asked)
    connect(layout)
    with leased(layout, f"judging {model}"):
        for _ in range(_TRIES):
            with transaction(layout, model) as held:
                faults.point("promote.lease")
                found = _looked_up(held, params, request)
            if isinstance(found, Decision):
                return found
            state, candidate = found
            case = judged(layout, params, state, candidate)
            with transaction(layout, model) as held:
                decision = committed(held, params, case, request.run)
            if decision is not None:
                faults.point("promote.done")
                return decision
    raise Failed(
        f"{model}: another version became champion each time that this one was judged; run again"
    )


def _looked_up(
    held: Transaction, params: Params, request: _Request
) -> Decision | tuple[ModelState, Version]:
    """Return what is known without asking the gates, or what is to be put before them."""
    from pipelines.registry import versions as registry
    from pipelines.registry.state import require_sound

    state = held.state()
    require_sound(state)
    number = request.version or state.aliases.get(registry.CHALLENGER)
    if number is None and held.mended is not None:  # the challenger was promoted just now
        number = state.live
    if number is None:
        raise UserError(
            f"{held.model}: no version is challenger; name one (`prong models` shows them)"
        )
    candidate = held.version(number)
    if not candidate.complete:
        raise UserError(f"{held.model} version {number}: its registration is not complete")
    candidate.require_no_variant()
    if state.live == number:
        return known(candidate, state.live, "already champion")
    held.key()  # before anything is judged that could not be signed
    if not request.asked:
        question = gate_inputs(held.layout, params, state)
        old = nothing_new(candidate, state, state.live, question)
        if old is not None:
            return old
    return state, candidate


def committed(held: Transaction, params: Params, case: Case, run: str) -> Decision | None:
    """Write down what the gates found, and let the version go live if they let it through.

    Args:
        held: The transaction, begun after the judgement.
        params: Whose limits the gates were held to.
        case: What was judged.
        run: Prefect's id of the run, or empty.

    Returns:
        The decision; None if the champion is no longer the one it was held against.
    """
    from pipelines.gates.finding import blocked
    from pipelines.registry import versions as registry
    from pipelines.registry.intents import Intent
    from pipelines.registry.state import require_sound
    from pipelines.release.let_through import sign_beside, statement_about
    from pipelines.systems.scratch import scratch

    layout, state, findings = held.layout, held.state(), case.findings
    require_sound(state)
    last, live, number = state.history.last, state.live, case.candidate.number
    candidate = held.version(number)
    if (last.hash if last else "") != case.after or candidate.sha256 != case.candidate.sha256:
        return None
    write_findings(held, case)
    figures = figures_of(findings)
    if stopped := blocked(findings, case.gates):
        return Decision(number, False, live, live, blocked_by(stopped), findings, *figures)
    key = held.key()
    reason = next((f.reason for f in findings if f.gate == "champion"), "every gate passed")
    statement = statement_about(
        layout, params, candidate, findings, held_against=live, run=run
    ).signed(key)
    with scratch(layout.state, "sign") as folder:
        sign_beside(layout, candidate, statement, folder)
    held.write_statement(statement)
    faults.point("promote.statement")
    entry = held.entry(
        history.PROMOTED,
        number,
        replaced=live,
        previous=live,
        reason=reason,
        run=run,
        error=figures[0],
        sha256=statement.sha256,
        statement=statement.hash,
    )
    wanted = {registry.PREVIOUS: live, registry.CHAMPION: number}
    if state.aliases.get(registry.CHALLENGER) == number:
        wanted[registry.CHALLENGER] = None
    after = "" if last is None else last.hash
    intent = held.intend(Intent("promote", entry.intent, after=after, aliases=wanted, entry=entry))
    faults.point("promote.intent")
    held.carry_out(intent)
    return Decision(number, True, number, live, reason, findings, *figures)


def rollback(layout: Layout, model: str, to: str | None, reason: str, run: str = "") -> Rollback:
    """Make an earlier champion champion again, once it has answered in ONNX Runtime.

    Args:
        layout: The checkout.
        model: The registered model's name.
        to: Number or alias of a version that was champion; None takes the one before.
        reason: Why, for the history.
        run: Prefect's id of the run, or empty.

    Raises:
        UserError: If there is no such version, it never was champion, no statement that holds says
            that the gates let it through, or its file is damaged.
        Failed: If it does not answer as it should.
        Unavailable: If the store does not answer.
    """
    from pipelines.registry import versions as registry
    from pipelines.registry.intents import Intent
    from pipelines.registry.state import require_sound
    from pipelines.registry.version_files import required_statement
    from pipelines.release.transaction import transaction

    with transaction(layout, model) as held:
        faults.point("rollback.lease")
        state = held.state()
        require_sound(state)
        live, last = state.live, state.history.last
        if to is None and (done := _mended(held, state)):
            return done
        target = _target(state, model, to)
        if target == live:
            raise UserError(f"{model} version {target}: is champion already")
        if target not in state.history.lived:
            raise UserError(
                f"{model} version {target}: never was champion, so there is no way back to it; "
                f"`prong promote {target}` puts it before the gates"
            )
        held.version(target)  # it is there
        statement = required_statement(layout, held.client, state, target)
        _query(layout, statement)
        faults.point("rollback.verified")
        previous = state.history.before(target)
        previous = previous if held.is_released(state, previous) else None
        entry = held.entry(
            history.ROLLED_BACK,
            target,
            replaced=live,
            previous=previous,
            reason=reason,
            run=run,
            error=statement.error,
            sha256=statement.sha256,
            statement=statement.hash,
        )
        aliases = {registry.PREVIOUS: previous, registry.CHAMPION: target}
        after = "" if last is None else last.hash
        intent = held.intend(
            Intent("rollback", entry.intent, after=after, aliases=aliases, entry=entry)
        )
        faults.point("rollback.intent")
        held.carry_out(intent)
    faults.point("rollback.done")
    return Rollback(model, target, live, previous)


def _mended(held: Transaction, state: ModelState) -> Rollback | None:
    """Return the rollback that broke off and was finished just now: a second one would go too far.

    A command typed again means the one that died.
    """
    last = state.history.last
    if held.mended is None or held.mended.command != "rollback":
        return None
    assert last is not None
    assert last.version is not None
    return Rollback(held.model, last.version, last.replaced, last.previous)


def _target(state: ModelState, model: str, to: str | None) -> int:
    from pipelines.registry import versions as registry

    if to is None:
        if state.previous is None:
            raise UserError(
                f"{model}: no version is previous; name one that was champion with --to "
                "(`prong history` shows them)"
            )
        return state.previous
    # What the history says counts, whatever the aliases were moved to.
    named = dict(state.aliases)
    for alias, number in ((registry.CHAMPION, state.live), (registry.PREVIOUS, state.previous)):
        named.pop(alias, None)
        if number is not None:
            named[alias] = number
    return registry.number_of(model, named, to, asked="--to")


def _query(layout: Layout, statement: Statement) -> None:
    """Load the file that a statement names, and ask it about random examples."""
    import numpy as np

    from pipelines.registry import version_files
    from pipelines.systems.onnx.runtime import OnnxModel
    from pipelines.tasks.examples import examples
    from pipelines.tasks.named import task_of

    model = OnnxModel.load(version_files.released_file(layout, statement), "cpu")
    raw, answers = model.both(examples(model.form, 3))
    if not np.isfinite(raw).all() or not task_of(model.form, layout.root).sound(answers):
        raise Failed(
            f"{statement.model} version {statement.version}: its answers are none; "
            "nothing was changed; `prong history` shows other versions that were champion"
        )
