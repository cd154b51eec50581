"""What the gates said of a version, kept with it: asked once, remembered as long as it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.core import faults
from pipelines.core.config import Params
from pipelines.core.paths import Layout
from pipelines.registry import history, outside

if TYPE_CHECKING:  # MLflow and the gates are imported when a step is called, not with the flow
    from pipelines.gates.finding import Finding
    from pipelines.registry.state import ModelState
    from pipelines.registry.versions import Version
    from pipelines.release.transaction import Transaction

GATE_INPUTS = "prong.question"
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
class Case:
    """What was put before the gates, and what they found; judged without a lease.

    Attributes:
        candidate: The version.
        after: Hash of the history's newest entry when it was judged; empty without one.
        question: All that the answer depends on, beside the version.
        findings: One per gate.
        gates: All that must have passed.
    """

    candidate: Version
    after: str
    question: Mapping[str, object]
    findings: tuple[Finding, ...]
    gates: tuple[str, ...]


def judged(layout: Layout, params: Params, state: ModelState, candidate: Version) -> Case:
    """Hold a version to every gate. No lease is held: a rollback never waits for a judgement.

    Args:
        layout: The checkout, whose gate split decides.
        params: The limits, in `gates`.
        state: How the model stands; its champion is what the version is held against.
        candidate: The version.

    Raises:
        UserError: If the checkout has no gate split, or the champion no statement that holds.
        Unavailable: If the registry does not answer.
    """
    from pipelines.gates.judging import GATES, judge
    from pipelines.registry import versions as registry
    from pipelines.registry.state import statement_of
    from pipelines.registry.stored_version import StoredVersion
    from pipelines.registry.version_files import required_statement
    from pipelines.release.best_champions import best_champions
    from pipelines.systems.mlflow import answering, connect

    client = connect(layout)
    question = gate_inputs(layout, params, state)
    with answering(layout):
        rows = {version.number: version for version in registry.versions(client, state.model)}
        released = {}
        for number in sorted(state.history.lived & set(rows), reverse=True):
            found = statement_of(layout, state, number, rows[number].tags)
            if found is not None:
                released[number] = found
        champion = None
        if state.live is not None:
            statement = required_statement(layout, client, state, state.live)
            version = rows.get(state.live) or registry.get_version(client, state.model, state.live)
            champion = StoredVersion(layout, version, statement)
    past = [
        StoredVersion(layout, rows[one.version], one)
        for one in best_champions(list(released.values()))
    ]
    findings = judge(layout, params, StoredVersion(layout, candidate), champion, past)
    faults.point("promote.judged")
    last = state.history.last
    after = "" if last is None else last.hash
    return Case(candidate, after, question, findings, tuple(GATES))


def write_findings(held: Transaction, case: Case) -> None:
    """Write onto a version what the gates found and what they were asked.

    The question goes first and comes last, so that a crash leaves no answer to another question.
    """
    from pipelines.registry import findings as findings_of
    from pipelines.systems.mlflow import registered_models

    held.check()
    client, model, number = held.client, case.candidate.model, case.candidate.number
    if GATE_INPUTS in case.candidate.tags:
        registered_models.untag_version(client, model, number, GATE_INPUTS)
    findings_of.write(client, case.candidate, case.findings)
    registered_models.tag_version(client, model, number, GATE_INPUTS, _text(case.question))
    faults.point("promote.tags")


def blocked_by(stopped: Sequence[Finding]) -> str:
    """Return what blocks, in one line: those that failed come first."""
    order = sorted(stopped, key=lambda finding: finding.verdict != "fail")
    names = ", ".join(finding.gate for finding in order)
    return f"blocked by {names}: {order[0].reason}"


def figures_of(findings: Sequence[Finding]) -> tuple[float | None, int]:
    """Return error and images of the gate split, from the gate `champion`."""
    figures = next((f.figures for f in findings if f.gate == "champion"), {})
    return figures.get("error"), int(figures.get("images", 0))


def gate_inputs(
    layout: Layout, params: Params, state: ModelState
) -> dict[str, int | float | str | list[int] | None]:
    """Return all that the gates' answers on a version depend on, beside the version itself."""
    from pipelines.data.prepared import load_card

    return {
        "champion": state.live,
        "champions": sorted(state.history.lived),
        "data_hash": load_card(layout.prepared).data_hash,
        "gates": params.hash("gates"),
    }


def nothing_new(
    candidate: Version,
    state: ModelState,
    live: int | None,
    question: Mapping[str, object],
    gates: Sequence[str] = (),
) -> Decision | None:
    """Return the decision if it is known without asking the gates.

    Args:
        candidate: The version.
        state: How its model stands.
        live: The champion, or None.
        question: What its gates would be asked.
        gates: All that must have passed; default: those of a version that is no variant.
    """
    if state.history.was_live(candidate.number, candidate.sha256):
        aside = state.history.put_aside(candidate.number)
        how = "another was put in its place since"
        if aside is not None and aside.event == history.ROLLED_BACK:
            how = f"it was rolled back from ({aside.reason})"
        return known(candidate, live, f"nothing new: it was champion, and {how}")
    if candidate.tags.get(GATE_INPUTS) != _text(question):
        return None
    from pipelines.gates.finding import blocked
    from pipelines.gates.judging import GATES

    stopped = blocked(candidate.findings, gates or tuple(GATES))
    # What could not be asked is asked again; not so what was left out after another gate failed.
    if not any(finding.verdict == "fail" for finding in stopped):
        return None
    return known(candidate, live, f"nothing new: {blocked_by(stopped)}")


def known(candidate: Version, live: int | None, reason: str) -> Decision:
    """Return the decision that leaves all as it is, with the figures known."""
    error, images = figures_of(candidate.findings)
    return Decision(
        version=candidate.number,
        promoted=False,
        champion=live,
        held_against=_held_against(candidate),
        reason=reason,
        findings=candidate.findings,
        error=error,
        images=images,
    )


def _held_against(candidate: Version) -> int | None:
    """Return the champion that a version's gates were asked about; None if nothing sound says."""
    try:
        said = json.loads(candidate.tags.get(GATE_INPUTS, "{}"))
        return outside.number(said.get("champion")) if isinstance(said, dict) else None
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
