"""What the gates said of a version, kept with it: asked once, remembered as long as it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines import history
from pipelines.config import Params
from pipelines.layout import Layout

if TYPE_CHECKING:  # MLflow and the gates are imported when a step is called, not with the flow
    from pipelines.gates.finding import Finding
    from pipelines.intents import State
    from pipelines.registrar import Registrar
    from pipelines.registry import Version

QUESTION = "prong.question"
"""Tag of a version: what its gates were asked; an answer holds as long as the question stays."""
GATE_ERROR, GATE_IMAGES = "gate_error", "gate_images"
"""Metrics of a version: share of wrong answers on the gate split, and the images of the split."""


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


def best_error(held: Registrar, state: State) -> float | None:
    """Return the least share of wrong answers of all versions that ever were champion, or None."""
    from pipelines import registry

    found = [entry.error for entry in state.history.entries if entry.error is not None]
    for version in registry.versions(held.client, held.model):
        error = version.under(registry.METRIC).get(GATE_ERROR)
        if version.number in state.history.lived and error is not None:
            found.append(float(error))
    return min(found, default=None)


def question_of(
    layout: Layout, params: Params, held: Registrar, state: State
) -> dict[str, int | float | str | None]:
    """Return what the gates are asked of a version: the same question has the same answer."""
    from pipelines import registry
    from pipelines.data.prepared import load_card

    return {
        "champion": state.aliases.get(registry.CHAMPION),
        "best_error": best_error(held, state),
        "data_hash": load_card(layout.prepared).data_hash,
        "gates": params.hash("gates"),
    }


def nothing_new(
    candidate: Version, state: State, live: int | None, question: Mapping[str, object]
) -> Decision | None:
    """Return the decision if it is known without asking the gates."""
    if candidate.number in state.history.lived:
        aside = state.history.put_aside(candidate.number)
        how = "another was put in its place since"
        if aside is not None and aside.event == history.ROLLED_BACK:
            how = f"it was rolled back from ({aside.reason})"
        return known(candidate, live, f"nothing new: it was champion, and {how}")
    if candidate.tags.get(QUESTION) != _text(question):
        return None
    verdicts = {finding.verdict for finding in candidate.findings}
    if "fail" not in verdicts or "not run" in verdicts:
        return None
    said = "; ".join(f"{f.gate}: {f.reason}" for f in candidate.findings if f.verdict == "fail")
    return known(candidate, live, f"nothing new: blocked: {said}")


def known(candidate: Version, live: int | None, reason: str) -> Decision:
    """Return the decision that leaves all as it is, with the figures known."""
    from pipelines import registry

    said = json.loads(candidate.tags.get(QUESTION, "{}"))
    metrics = candidate.under(registry.METRIC)
    return Decision(
        version=candidate.number,
        promoted=False,
        champion=live,
        held_against=said.get("champion"),
        reason=reason,
        findings=candidate.findings,
        error=float(metrics[GATE_ERROR]) if GATE_ERROR in metrics else None,
        images=int(metrics.get(GATE_IMAGES, "0")),
    )


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def write_findings(
    layout: Layout,
    held: Registrar,
    candidate: Version,
    findings: Sequence[Finding],
    question: Mapping[str, object],
) -> tuple[float | None, int]:
    """Put findings and figures onto the version; return error and images.

    The question goes first and comes last, so that a crash leaves no answer to another question.
    """
    from pipelines import registry, scoring

    client, model, number = held.client, candidate.model, str(candidate.number)
    held.check()
    if QUESTION in candidate.tags:
        client.delete_model_version_tag(model, number, QUESTION)
    for key in candidate.tags:
        if key.startswith(registry.GATE):
            client.delete_model_version_tag(model, number, key)
    tags = {registry.GATE + f.gate: _finding_tag(f) for f in findings}
    score = scoring.gate_score(layout, candidate)
    scored = not isinstance(score, str) and math.isfinite(score.error)
    if not isinstance(score, str) and scored:
        tags[registry.METRIC + GATE_ERROR] = str(score.error)
        tags[registry.METRIC + GATE_IMAGES] = str(score.images)
    for key, value in {**tags, QUESTION: _text(question)}.items():
        client.set_model_version_tag(model, number, key, value)
    if isinstance(score, str) or not scored:
        return None, 0
    return score.error, score.images


def _finding_tag(finding: Finding) -> str:
    """Return a finding as the value of a tag: compact JSON of at most 5000 characters."""
    text = _text(asdict(finding))
    over = len(text) - 5000
    if over <= 0:
        return text
    # Escapes may make the text longer than the reason: cut by the whole excess and a margin.
    short = finding.reason[: max(0, len(finding.reason) - 2 * over - 1)] + "…"
    return _text({**asdict(finding), "reason": short})
