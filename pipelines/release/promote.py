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
    Decision,
    blocked_by,
    figures_of,
    gate_inputs,
    judged,
    known,
    nothing_new,
)

if TYPE_CHECKING:  # MLflow and the gates are imported when a step is called, not with the flow
    from pipelines.registry.intents import ModelState
    from pipelines.registry.versions import Version
    from pipelines.release.transaction import Transaction


@dataclass(frozen=True)
class PromotionRequest:
    """What is to be promoted, and who asks.

    Attributes:
        version: The version to judge; None takes the challenger.
        run: Prefect's id of the run, or empty.
        asked: Whether a person asked for just this version: its gates are run again.
    """

    version: int | None
    run: str = ""
    asked: bool = False


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


def promote(
    layout: Layout, params: Params, version: int | None, run: str = "", *, asked: bool = False
) -> Decision:
    """Promote in a transaction of its own; see `promote_in`."""
    from pipelines.release.transaction import transaction

    with transaction(layout, params.model_name) as held:
        return promote_in(held, params, PromotionRequest(version, run, asked))


def promote_in(held: Transaction, params: Params, request: PromotionRequest) -> Decision:
    """Make a version champion if every gate lets it pass.

    A version that was champion before does not come back by itself, only if it is asked for: it
    was rolled back from, or replaced by a better one.

    Args:
        held: The transaction; the gate split of its checkout decides.
        params: `registry.model` and `gates`.
        request: Which version, and who asks.

    Raises:
        UserError: If the version or the gate split is absent, or the store cannot be used.
        Unavailable: If the store does not answer.
    """
    faults.point("promote.lease")
    decision = _decided(held, params, request)
    faults.point("promote.done")
    return decision


def _decided(held: Transaction, params: Params, request: PromotionRequest) -> Decision:
    from pipelines.gates.finding import blocked
    from pipelines.gates.judging import GATES
    from pipelines.registry import versions as registry
    from pipelines.registry.intents import Intent

    layout, state = held.layout, held.state()
    number = request.version or state.aliases.get(registry.CHALLENGER)
    if number is None and held.mended is not None:  # the challenger was promoted just now
        number = state.aliases.get(registry.CHAMPION)
    if number is None:
        raise UserError(
            f"{held.model}: no version is challenger; name one (`prong models` shows them)"
        )
    candidate, live = held.version(number), state.aliases.get(registry.CHAMPION)
    if not candidate.complete:
        raise UserError(f"{held.model} version {number}: its registration is not complete")
    if live == number:
        return known(candidate, live, "already champion")
    if not request.asked and (
        old := nothing_new(candidate, state, live, gate_inputs(layout, params, state))
    ):
        return old
    findings = judged(layout, params, held, state, candidate)
    figures = figures_of(findings)
    if stopped := blocked(findings, tuple(GATES)):
        return Decision(number, False, live, live, blocked_by(stopped), findings, *figures)
    reason = next((f.reason for f in findings if f.gate == "champion"), "every gate passed")
    entry = held.entry(
        history.PROMOTED,
        number,
        replaced=live,
        previous=live,
        reason=reason,
        run=request.run,
        error=figures[0],
    )
    wanted = {registry.PREVIOUS: live, registry.CHAMPION: number}
    if state.aliases.get(registry.CHALLENGER) == number:
        wanted[registry.CHALLENGER] = None
    intent = Intent("promote", entry.intent, aliases=wanted, entry=entry.as_json())
    held.intend(intent)
    faults.point("promote.intent")
    held.carry_out(intent)
    return Decision(number, True, number, live, reason, findings, *figures)


def rollback(layout: Layout, model: str, to: str | None, reason: str, run: str = "") -> Rollback:
    """Make an earlier champion champion again, once it has answered in ONNX Runtime.

    Args:
        layout: The checkout.
        model: The registered model's name.
        to: Number or alias of a version that was champion; None takes the alias `previous`.
        reason: Why, for the history.
        run: Prefect's id of the run, or empty.

    Raises:
        UserError: If there is no such version, it never was champion, or its file is damaged.
        Failed: If it does not answer as it should.
        Unavailable: If the store does not answer.
    """
    from pipelines.registry import versions as registry
    from pipelines.registry.intents import Intent
    from pipelines.release.transaction import transaction

    with transaction(layout, model) as held:
        faults.point("rollback.lease")
        state = held.state()
        live = state.aliases.get(registry.CHAMPION)
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
        _query(layout, held.version(target))
        faults.point("rollback.verified")
        previous = state.history.before(target)
        previous = previous if held.is_complete(previous) else None
        entry = held.entry(
            history.ROLLED_BACK, target, replaced=live, previous=previous, reason=reason, run=run
        )
        intent = Intent(
            "rollback",
            entry.intent,
            aliases={registry.PREVIOUS: previous, registry.CHAMPION: target},
            entry=entry.as_json(),
        )
        held.intend(intent)
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
        if registry.PREVIOUS not in state.aliases:
            raise UserError(
                f"{model}: no version is previous; name one that was champion with --to "
                "(`prong history` shows them)"
            )
        return state.aliases[registry.PREVIOUS]
    return registry.number_of(model, state.aliases, to, asked="--to")


def _query(layout: Layout, version: Version) -> None:
    """Load a version's file, whose hash is checked, and ask it about random images."""
    import numpy as np

    from pipelines.registry import version_files
    from pipelines.systems.onnx.runtime import OnnxModel

    model = OnnxModel.load(version_files.version_file(layout, version), "cpu")
    shape = (3, model.card.channels, model.card.size, model.card.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    answers = model.probabilities(images)
    if not np.isfinite(answers).all() or not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise Failed(
            f"{version.model} version {version.number}: does not answer with probabilities; "
            "nothing was changed; `prong history` shows other versions that were champion"
        )
