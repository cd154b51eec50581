"""Registers a variant as a version of a model of its own, and lets it go live by its own gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.core.errors import Failed
from pipelines.core.files import write_text
from pipelines.gates.finding import Finding, blocked
from pipelines.gates.judging import judge
from pipelines.gates.of_variants import GATES_OF_VARIANTS
from pipelines.gates.variant_limits import VariantLimits
from pipelines.provenance.attachments import BILL, CARD
from pipelines.provenance.bom import bill_of_materials
from pipelines.registry import history
from pipelines.registry import versions as registry
from pipelines.registry.state import ModelState, require_sound
from pipelines.registry.stored_version import StoredVersion
from pipelines.registry.versions import Version
from pipelines.release import upload
from pipelines.release.decision import Case, Decision, known, nothing_new
from pipelines.release.promote import committed
from pipelines.release.register import registered
from pipelines.release.transaction import Transaction, transaction
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow.leases import leased
from pipelines.systems.scratch import scratch
from pipelines.variants.approximated import VariantBase
from pipelines.variants.build_variant import BuiltVariant
from pipelines.variants.kinds import limits_of

_GATES = tuple(GATES_OF_VARIANTS)
_TRIES = 3


@dataclass(frozen=True)
class VariantRelease:
    """What became of a variant.

    Attributes:
        model: The registered model's name.
        created: Whether its version was made now.
        judged: Whether its gates were asked now.
        decision: Whether it is live, and why.
    """

    model: str
    created: bool
    judged: bool
    decision: Decision

    @property
    def live(self) -> bool:
        """Whether it is the champion of its model."""
        return self.decision.champion == self.decision.version

    @property
    def blocked_by(self) -> tuple[str, ...]:
        """The gates that did not let it through; those that failed come first."""
        stopped = blocked(self.decision.findings, _GATES)
        order = sorted(stopped, key=lambda finding: finding.verdict != "fail")
        return tuple(finding.gate for finding in order)


def release(base: VariantBase, built: BuiltVariant) -> VariantRelease:
    """Register a variant and let it go live if every gate of variants passes.

    What is registered, judged or live already stays so. One that a person rolled back from does not
    come back.

    Args:
        base: The champion that it was made from.
        built: The variant.

    Raises:
        UserError: If the history of its model cannot be relied on, or the store cannot be used.
        Failed: If others moved its champion, or the base's, each time that it was judged.
        Unavailable: If the store does not answer.
    """
    layout, model = base.layout, base.name_of(built.kind)
    limits = limits_of(built.kind, base.params.gates)
    with leased(layout, f"judging {model}"):
        with transaction(layout, model) as held:
            require_sound(held.state())
            done = registered(held, built.sha256, lambda: _new_version(held, base, built))
        judged_now = False
        for _ in range(_TRIES):
            with transaction(layout, model) as held:
                state, candidate = held.state(), held.version(done.version)
                require_sound(state)
            decision = _known(base, candidate, state, limits)
            if decision is None:
                judged_now = True
                case = _judged(base, candidate, state, limits)
                if not base.is_live():
                    break
                with transaction(layout, model) as held:
                    decision = committed(held, base.params, case, "")
            if decision is not None:
                return VariantRelease(model, done.created, judged_now, decision)
    raise Failed(
        f"{model}: another version of it, or of {base.model}, went live while it was judged; run "
        "again"
    )


def _known(
    base: VariantBase, candidate: Version, state: ModelState, limits: VariantLimits
) -> Decision | None:
    """Return the decision if nothing is to be asked; None if the gates are."""
    if state.live == candidate.number:
        return known(candidate, state.live, "already live")
    aside = state.history.put_aside(candidate.number)
    if aside is not None and aside.event != history.ROLLED_BACK:
        return None  # replaced by the variant of another champion, which is live no more
    return nothing_new(candidate, state, state.live, _question(base, limits), _GATES)


def _question(base: VariantBase, limits: VariantLimits) -> dict[str, object]:
    """Return all that the gates' answers on a variant depend on, beside the variant itself."""
    return {
        registry.VARIANT_OF: base.text,
        "data_hash": base.data.data_hash,
        "gates": base.params.hash("gates"),
        "limits": asdict(limits),
    }


def _judged(
    base: VariantBase, candidate: Version, state: ModelState, limits: VariantLimits
) -> Case:
    """Hold a variant to its gates, without a lease, against the champion that it approximates."""
    layout = base.layout
    champion = StoredVersion(layout, base.version, base.statement)
    stored = StoredVersion(layout, candidate)
    findings = judge(layout, base.params, stored, champion, variant=limits)
    last = state.history.last
    after = "" if last is None else last.hash
    return Case(candidate, after, _question(base, limits), findings, _GATES)


def _new_version(held: Transaction, base: VariantBase, built: BuiltVariant) -> tuple[int, str]:
    """Upload a variant as a complete version; return its number and its run."""
    layout, client = base.layout, held.client
    made_from = base.lineage_of(built.kind, built.sha256)
    with scratch(layout.state, "variant") as empty:
        run_id = tracking.import_run(
            layout,
            experiment=held.model,
            params={registry.VARIANT: built.kind, "how": built.how},
            tags={registry.VARIANT_OF: base.text},
            reports=empty,
        )

    def attach(file: Path) -> None:
        write_text(file.parent / CARD, _card(base, built, made_from))
        bill = bill_of_materials(held.model, built.sha256, base.data, made_from, {})
        write_text(file.parent / BILL, bill)

    new = upload.NewVersion(
        held.model, built.path, built.sha256, run_id, made_from, {}, attach, base.path
    )
    number = upload.create(layout, client, new, held.check)
    held.check()
    upload.complete(client, held.model, number)
    return number, run_id


def _card(base: VariantBase, built: BuiltVariant, made_from: dict[str, str]) -> str:
    lines = [
        f"# {base.name_of(built.kind)}",
        "",
        f"The variant {built.kind} of {base.model} version {base.number} (sha256 "
        f"`{base.statement.sha256}`): {built.how}. Inputs, outputs and classes are the same; the "
        "card of that version says what it is for and what not. How far it differs stands in its "
        "gates, as tags of the version.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | `{value}` |" for key, value in sorted(made_from.items())),
        "",
    ]
    return "\n".join(lines)


def finding_of(findings: Sequence[Finding], gate: str) -> Finding | None:
    """Return what a gate found; None if it was not asked."""
    return next((finding for finding in findings if finding.gate == gate), None)
