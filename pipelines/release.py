"""Register and promote: how an ONNX file becomes a version, and a version the champion.

Every fact about a version is written before an alias points to it, so that whoever follows the
alias finds a complete version; what a crash leaves half-done, the next call finishes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.config import Params
from pipelines.errors import Unavailable, UserError
from pipelines.files import sha256_file
from pipelines.layout import Layout

if TYPE_CHECKING:  # MLflow is imported when a step is called, not with the flow
    from mlflow import MlflowClient

    from pipelines.registry import Version
    from pipelines.scoring import Score


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
    """

    version: int
    promoted: bool
    champion: int | None
    held_against: int | None
    reason: str
    error: float | None = None
    champion_error: float | None = None
    images: int = 0


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
    """Make a version champion if it is no worse than the present one on the gate split.

    Both are scored here and now, from the registry's own files, on the same images. A comparison
    that cannot be made blocks. Without a champion, a version that can be scored becomes it.

    Args:
        layout: The checkout; its gate split decides.
        params: `registry.model` and `gates.margin`.
        version: The version to judge.

    Raises:
        UserError: If the version or the gate split is absent, or the store cannot be used.
        Unavailable: If the store does not answer.
    """
    from pipelines import registry
    from pipelines.data.prepared import load_card

    model = params.model_name
    with _registrar(layout, model) as client:
        candidate = registry.get_version(client, model, version)
        if not candidate.complete:
            raise UserError(f"{model} version {version}: its registration is not complete")
        number = registry.aliases(client, model).get(registry.CHAMPION)
        champion = None if number is None else registry.get_version(client, model, number)
        gate = candidate.under(registry.GATE)
        if number == version:
            return _again(candidate, number, "already champion", gate)
        question = {
            "champion": str(number or "none"),
            "data_hash": load_card(layout.prepared).data_hash,
            "margin": repr(params.gates.margin),
        }
        answered = all(gate.get(key) == value for key, value in question.items())
        if answered and gate.get("verdict") == "fail":
            return _again(candidate, number, f"nothing new: {gate['reason']}", gate)
        if answered and gate.get("verdict") == "pass" and "promoted" in gate:
            reason = "nothing new: it was champion, and another was put in its place since"
            return _again(candidate, number, reason, gate)
        verdict, decision = _judge(layout, candidate, champion, params.gates.margin)
        _write(client, candidate, gate, {**question, **_figures(decision), "verdict": verdict})
        if decision.promoted:
            if number is not None:
                client.set_registered_model_alias(model, registry.PREVIOUS, str(number))
            client.set_registered_model_alias(model, registry.CHAMPION, str(version))
            now = datetime.now(UTC).isoformat(timespec="seconds")
            _write(client, candidate, {}, {"promoted": now})
        return decision


def _again(
    candidate: Version, champion: int | None, reason: str, gate: Mapping[str, str]
) -> Decision:
    """Return the decision that the figures of an earlier judgement lead to."""
    held = gate.get("champion", "none")
    return Decision(
        version=candidate.number,
        promoted=False,
        champion=champion,
        held_against=None if held == "none" else int(held),
        reason=reason,
        error=float(gate["error"]) if "error" in gate else None,
        champion_error=float(gate["champion_error"]) if "champion_error" in gate else None,
        images=int(gate.get("images", "0")),
    )


def _figures(decision: Decision) -> dict[str, str]:
    figures: dict[str, Any] = {
        "error": decision.error,
        "champion_error": decision.champion_error,
        "images": decision.images,
        "reason": decision.reason,
    }
    return {key: str(value) for key, value in figures.items() if value is not None}


def _write(
    client: MlflowClient, version: Version, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
    """Put `new` in the place of `old`; the verdict goes first and comes last.

    So a crash leaves a version without a verdict, never one with another question's.
    """
    from pipelines import registry

    number = str(version.number)
    for key in sorted(old, key=lambda key: key != "verdict"):
        client.delete_model_version_tag(version.model, number, registry.GATE + key)
    for key in sorted(new, key=lambda key: key == "verdict"):
        client.set_model_version_tag(version.model, number, registry.GATE + key, new[key][:5000])


def _judge(
    layout: Layout, candidate: Version, champion: Version | None, margin: float
) -> tuple[str, Decision]:
    """Return the verdict (pass, fail or not run) and the decision it leads to."""
    held = None if champion is None else champion.number

    def decide(verdict: str, reason: str, **figures: Any) -> tuple[str, Decision]:
        passed = verdict == "pass"
        leads = candidate.number if passed else held
        return verdict, Decision(candidate.number, passed, leads, held, reason, **figures)

    new = _score(layout, candidate)
    if isinstance(new, str):
        return decide("not run", f"blocked: version {candidate.number} cannot be scored: {new}")
    if not math.isfinite(new.error):
        return decide("not run", "blocked: the gate split holds no images; raise data.gate")
    said = f"{new.errors} of {new.images} wrong"
    figures: dict[str, Any] = {"error": new.error, "images": new.images}
    if champion is None:
        return decide("pass", f"{said}; the first champion", **figures)
    old = _score(layout, champion)
    if isinstance(old, str):
        reason = (
            f"blocked: champion version {held} cannot be scored, so there is nothing to compare "
            f"with: {old}; set registry.model to another name to begin a new line of models"
        )
        return decide("not run", reason, **figures)
    figures["champion_error"] = old.error
    said += f", champion version {held} {old.errors}"
    # The shares are whole counts over the same images: compared without a rounding's luck.
    if new.errors <= old.errors + margin * new.images + 1e-9:
        return decide("pass", said, **figures)
    return decide("fail", f"blocked: worse than the champion: {said}, margin {margin:g}", **figures)


def _score(layout: Layout, version: Version) -> Score | str:
    """Return a version's score on the gate split, or why it cannot be scored."""
    from pipelines import registry, scoring
    from pipelines.data.prepared import load_card, load_split
    from pipelines.runtime import OnnxModel

    card, split = load_card(layout.prepared), load_split(layout.prepared, "gate")
    try:
        model = OnnxModel.load(registry.version_file(layout, version), "cpu")
        return scoring.error(model, split, card.classes)
    except Unavailable:
        raise
    except UserError as error:
        return str(error)
