"""Promote and roll back: which version is live, by the gates or back to one that was.

Both write down what is to be before they move an alias; see `pipelines/registrar.py`. Heavy imports
stand inside the functions: a rollback is to take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines import faults, history
from pipelines.config import Params
from pipelines.errors import Failed, UserError
from pipelines.layout import Layout

if TYPE_CHECKING:  # MLflow and the gates are imported when a step is called, not with the flow
    from pipelines.gates.finding import Finding
    from pipelines.registrar import Registrar, State
    from pipelines.registry import Version

QUESTION = "prong.question"
"""Tag of a version: what its gates were asked; an answer holds as long as the question stays."""


@dataclass(frozen=True)
class Decision:
    """What `promote` came to.

    Attributes:
        version: The version that was judged.
        promoted: Whether it became champion now.
        champion: The champion from now on, or None.
        held_against: The champion it was compared with, or None.
        reason: Why, in one line.
        findings: What the gates found, now or when they were last asked the same.
        error: The version's share of wrong answers on the gate split, if scored.
        images: Images of the gate split, 0 if not scored.
    """

    version: int
    promoted: bool
    champion: int | None
    held_against: int | None
    reason: str
    findings: tuple[Finding, ...] = ()
    error: float | None = None
    images: int = 0


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
    layout: Layout,
    params: Params,
    version: int | None,
    run: str = "",
    *,
    asked: bool = False,
) -> Decision:
    """Make a version champion if every gate lets it pass.

    A version that was champion before does not come back by itself, only if it is asked for: it
    was rolled back from, or replaced by a better one.

    Args:
        layout: The checkout; its gate split decides.
        params: `registry.model` and `gates`.
        version: The version to judge; None takes the challenger.
        run: Prefect's id of the run, or empty.
        asked: Whether a person asked for just this version: its gates are run again.

    Raises:
        UserError: If the version or the gate split is absent, or the store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines.registrar import registrar

    with registrar(layout, params.model_name) as held:
        faults.point("promote.lease")
        decision = _promote(layout, params, held, version, run, asked)
    faults.point("promote.done")
    return decision


def _promote(
    layout: Layout,
    params: Params,
    held: Registrar,
    version: int | None,
    run: str,
    asked: bool,
) -> Decision:
    from pipelines import registry
    from pipelines.gates.finding import blocked
    from pipelines.gates.judging import GATES
    from pipelines.registrar import Intent

    state = held.state()
    number = version or state.aliases.get(registry.CHALLENGER)
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
        return _known(candidate, live, "already champion")
    question = _question(layout, params, state)
    if not asked and (known := _nothing_new(candidate, state, live, question)):
        return known
    findings = judged(layout, params, held, state, candidate)
    figures = _figures(findings)
    if stopped := blocked(findings, tuple(GATES)):
        return Decision(number, False, live, live, blocked_by(stopped), findings, *figures)
    reason = next((f.reason for f in findings if f.gate == "champion"), "every gate passed")
    entry = held.entry(
        history.PROMOTED,
        number,
        replaced=live,
        previous=live,
        reason=reason,
        run=run,
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


def judged(
    layout: Layout, params: Params, held: Registrar, state: State, candidate: Version
) -> tuple[Finding, ...]:
    """Hold a version to every gate, and write onto it what they found and what they were asked.

    The question goes first and comes last, so that a crash leaves no answer to another question.

    Raises:
        UserError: If the checkout has no gate split.
        Unavailable: If the registry does not answer.
    """
    from pipelines import registry
    from pipelines.gates import record
    from pipelines.gates.judging import judge
    from pipelines.gates.ratchet import best_error

    live = state.aliases.get(registry.CHAMPION)
    champion = None if live is None else held.version(live)
    rows = registry.versions(held.client, held.model)
    lived = [version for version in rows if version.number in state.history.lived]
    question = _question(layout, params, state)
    findings = judge(layout, params, candidate, champion, best_error(layout, lived))
    faults.point("promote.judged")
    held.check()
    number = str(candidate.number)
    if QUESTION in candidate.tags:
        held.client.delete_model_version_tag(candidate.model, number, QUESTION)
    record.write(held.client, candidate, findings)
    held.client.set_model_version_tag(candidate.model, number, QUESTION, _text(question))
    faults.point("promote.tags")
    return findings


def blocked_by(stopped: Sequence[Finding]) -> str:
    """Return what blocks, in one line: those that failed come first."""
    order = sorted(stopped, key=lambda finding: finding.verdict != "fail")
    names = ", ".join(finding.gate for finding in order)
    return f"blocked by {names}: {order[0].reason}"


def _figures(findings: Sequence[Finding]) -> tuple[float | None, int]:
    """Return error and images of the gate split, from the gate `champion`."""
    figures = next((f.figures for f in findings if f.gate == "champion"), {})
    return figures.get("error"), int(figures.get("images", 0))


def _question(
    layout: Layout, params: Params, state: State
) -> dict[str, int | float | str | list[int] | None]:
    from pipelines import registry
    from pipelines.data.prepared import load_card

    return {
        "champion": state.aliases.get(registry.CHAMPION),
        "champions": sorted(state.history.lived),
        "data_hash": load_card(layout.prepared).data_hash,
        "gates": params.hash("gates"),
    }


def _nothing_new(
    candidate: Version, state: State, live: int | None, question: Mapping[str, object]
) -> Decision | None:
    """Return the decision if it is known without asking the gates."""
    if candidate.number in state.history.lived:
        aside = state.history.put_aside(candidate.number)
        how = "another was put in its place since"
        if aside is not None and aside.event == history.ROLLED_BACK:
            how = f"it was rolled back from ({aside.reason})"
        return _known(candidate, live, f"nothing new: it was champion, and {how}")
    if candidate.tags.get(QUESTION) != _text(question):
        return None
    from pipelines.gates.finding import blocked
    from pipelines.gates.judging import GATES

    stopped = blocked(candidate.findings, tuple(GATES))
    if not stopped or any(finding.verdict == "not run" for finding in stopped):
        return None
    return _known(candidate, live, f"nothing new: {blocked_by(stopped)}")


def _known(candidate: Version, live: int | None, reason: str) -> Decision:
    """Return the decision that leaves all as it is, with the figures known."""
    said = json.loads(candidate.tags.get(QUESTION, "{}"))
    error, images = _figures(candidate.findings)
    return Decision(
        version=candidate.number,
        promoted=False,
        champion=live,
        held_against=said.get("champion"),
        reason=reason,
        findings=candidate.findings,
        error=error,
        images=images,
    )


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


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
    from pipelines import registry
    from pipelines.registrar import Intent, registrar

    with registrar(layout, model) as held:
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


def _mended(held: Registrar, state: State) -> Rollback | None:
    """Return the rollback that broke off and was finished just now: a second one would go too far.

    Whoever types the command again means the one that died.
    """
    last = state.history.last
    if held.mended is None or held.mended.command != "rollback":
        return None
    assert last is not None
    assert last.version is not None
    return Rollback(held.model, last.version, last.replaced, last.previous)


def _target(state: State, model: str, to: str | None) -> int:
    from pipelines import registry

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

    from pipelines import registry
    from pipelines.runtime import OnnxModel

    model = OnnxModel.load(registry.version_file(layout, version), "cpu")
    shape = (3, model.card.channels, model.card.size, model.card.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    answers = model.probabilities(images)
    if not np.isfinite(answers).all() or not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise Failed(
            f"{version.model} version {version.number}: does not answer with probabilities; "
            "nothing was changed; `prong history` shows other versions that were champion"
        )
