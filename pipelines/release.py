"""Register and promote: how an ONNX file becomes a version, and a version the champion.

Every fact about a version is written before an alias points to it, so that whoever follows the
alias finds a complete version; what a crash leaves half-done, the next call finishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipelines.config import Params
from pipelines.errors import UserError
from pipelines.files import sha256_file
from pipelines.gates.finding import Finding, blocked, from_tags
from pipelines.layout import Layout

if TYPE_CHECKING:  # MLflow is imported when a step is called, not with the flow
    from mlflow import MlflowClient

    from pipelines.registry import Version


@dataclass(frozen=True)
class Registration:
    """What `register` came to.

    Attributes:
        model: The registered model's name.
        version: The version that holds these bytes.
        created: False if it was there before.
        run_id: The training's run.
        onnx_sha256: Of the file.
    """

    model: str
    version: int
    created: bool
    run_id: str
    onnx_sha256: str


@dataclass(frozen=True)
class Decision:
    """What `promote` came to.

    Attributes:
        version: The version that was judged.
        promoted: Whether it became champion now.
        champion: The champion from now on, or None.
        held_against: The champion it was compared with, or None.
        reason: Why, in one line.
        error: The version's share of wrong answers on the gate split, if scored.
        champion_error: Likewise of the version in `held_against`.
        images: Images of the gate split, 0 if not scored.
        findings: Of every gate, in the order of the list.
    """

    version: int
    promoted: bool
    champion: int | None
    held_against: int | None
    reason: str
    error: float | None = None
    champion_error: float | None = None
    images: int = 0
    findings: tuple[Finding, ...] = ()


@contextmanager
def _registrar(layout: Layout, model: str) -> Iterator[MlflowClient]:
    """Yield a client to the one registrar at a time."""
    from pipelines import tracking

    client = tracking.connect(layout)
    with tracking.exclusive(layout, f"registry-{model}"), tracking.answering(layout):
        yield client


def register(layout: Layout, params: Params, flow_run_id: str | None) -> Registration:
    """Register `models/model.onnx` unless a version holds these bytes already.

    Upload, download again, compare, create the version with its tags, wait until it is READY,
    mark it complete.

    Args:
        layout: The checkout; all DVC stages are up to date.
        params: Its parameters.
        flow_run_id: Prefect's id of the run, if there is one.

    Raises:
        UserError: If the ONNX file or a report is absent or damaged, or the store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines import registry

    if not layout.onnx.is_file():
        raise UserError(f"{layout.onnx}: absent; the stage export makes it")
    model, sha256 = params.model_name, sha256_file(layout.onnx)
    with _registrar(layout, model) as client:
        for version in registry.versions(client, model):
            if version.sha256 == sha256 and version.complete:
                return Registration(model, version.number, False, version.run_id, sha256)
        from pipelines import upload  # seconds, which a run with nothing new does not spend

        for version in registry.versions(client, model):
            if version.sha256 == sha256 and upload.finish(layout, client, version):
                return Registration(model, version.number, True, version.run_id, sha256)
        number, run_id = upload.new_version(layout, client, params, sha256, flow_run_id)
    return Registration(model, number, True, run_id, sha256)


def promote(layout: Layout, params: Params, version: int) -> Decision:
    """Make a version champion if every gate lets it through.

    It is judged here and now, from the registry's own files. A gate that did not run blocks.

    Args:
        layout: The checkout; its gate split decides.
        params: `registry.model` and the limits in `gates`.
        version: The version to judge.

    Raises:
        UserError: If the version or the gate split is absent, or the store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines import registry
    from pipelines.data.prepared import load_card
    from pipelines.gates import record
    from pipelines.gates.judging import GATES, judge
    from pipelines.gates.ratchet import best_error, former_champions

    model = params.model_name
    with _registrar(layout, model) as client:
        candidate = registry.get_version(client, model, version)
        if not candidate.complete:
            raise UserError(f"{model} version {version}: its registration is not complete")
        number = registry.aliases(client, model).get(registry.CHAMPION)
        judged = candidate.under(registry.JUDGED)
        earlier = from_tags(candidate.tags)
        stopped = blocked(earlier, tuple(GATES))
        if number == version:
            return _decision(candidate, number, earlier, "already champion")
        question = {
            "champion": str(number or "none"),
            "data_hash": load_card(layout.prepared).data_hash,
            "gates": params.hash("gates"),
        }
        answered = all(judged.get(key) == value for key, value in question.items())
        if answered and stopped and all(finding.verdict == "fail" for finding in stopped):
            return _decision(candidate, number, earlier, f"nothing new: {_reason(stopped)}")
        if answered and not stopped and "promoted" in judged:
            reason = "nothing new: it was champion, and another was put in its place since"
            return _decision(candidate, number, earlier, reason)
        rows = registry.versions(client, model)
        champion = next((row for row in rows if row.number == number), None)
        best = best_error(layout, former_champions(rows))
        findings = judge(layout, params, candidate, champion, best)
        _forget(client, candidate, judged)
        record.write(client, candidate, findings)
        _write(client, candidate, question)
        stopped = blocked(findings, tuple(GATES))
        if stopped:
            return _decision(candidate, number, findings, _reason(stopped), held_against=number)
        if number is not None:
            client.set_registered_model_alias(model, registry.PREVIOUS, str(number))
        client.set_registered_model_alias(model, registry.CHAMPION, str(version))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        _write(client, candidate, {"promoted": now, "was_champion": "true"})
        reason = next(f.reason for f in findings if f.gate == "champion")
        return _decision(candidate, version, findings, reason, True, number)


def _reason(stopped: Sequence[Finding]) -> str:
    """Return what blocks, in one line: those that failed come first."""
    order = sorted(stopped, key=lambda finding: finding.verdict != "fail")
    names = ", ".join(finding.gate for finding in order)
    return f"blocked by {names}: {order[0].reason}"


def _decision(
    candidate: Version,
    champion: int | None,
    findings: tuple[Finding, ...],
    reason: str,
    promoted: bool = False,
    held_against: int | None = None,
) -> Decision:
    """Return a decision with the figures of the gate `champion`."""
    figures = next((f.figures for f in findings if f.gate == "champion"), {})
    held = candidate.tags.get("judged.champion", "none")
    earlier = None if held == "none" else int(held)
    return Decision(
        version=candidate.number,
        promoted=promoted,
        champion=champion,
        held_against=held_against if held_against is not None else earlier,
        reason=reason,
        error=figures.get("error"),
        champion_error=figures.get("champion_error"),
        images=int(figures.get("images", 0)),
        findings=findings,
    )


def _forget(client: MlflowClient, version: Version, judged: Mapping[str, str]) -> None:
    """Remove what a version was held against.

    So a crash leaves findings without their question, never with another's.
    """
    from pipelines import registry

    for key in judged:
        if key != "was_champion":
            number = str(version.number)
            client.delete_model_version_tag(version.model, number, registry.JUDGED + key)


def _write(client: MlflowClient, version: Version, judged: Mapping[str, str]) -> None:
    from pipelines import registry

    for key, value in judged.items():
        number = str(version.number)
        client.set_model_version_tag(version.model, number, registry.JUDGED + key, value)
