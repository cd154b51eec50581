"""The statement about a version that every gate let through, and the signatures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import sha256_json
from pipelines.core.paths import Layout
from pipelines.gates.finding import Finding
from pipelines.registry.statements import MADE_FROM, Passed, Statement
from pipelines.registry.versions import LINEAGE, VARIANT_OF, Version


def statement_about(
    layout: Layout,
    params: Params,
    candidate: Version,
    findings: Sequence[Finding],
    *,
    held_against: int | None,
    run: str,
) -> Statement:
    """Return what is to be signed about a version; not signed yet.

    Args:
        layout: The checkout, whose gate split decided.
        params: Whose limits the gates were held to.
        candidate: The version.
        findings: What the gates found, all of them passed; none where a person vouches instead.
        held_against: The champion that it was compared with, or None.
        run: Prefect's id of the run, or empty.

    Raises:
        UserError: If the bytes at hand are not those that were registered.
        Unavailable: If the registry does not answer.
    """
    from pipelines.registry import version_files
    from pipelines.release.decision import figures_of
    from pipelines.release.transaction import now, who
    from pipelines.systems.onnx.model_file import read_checked

    path = version_files.version_file(layout, candidate)  # by the hash that the gates saw
    content, card = read_checked(path)
    error, images = figures_of(findings)
    made_from = candidate.under(LINEAGE)
    return Statement(
        model=candidate.model,
        version=candidate.number,
        created=candidate.created.isoformat(timespec="milliseconds"),
        sha256=candidate.sha256,
        size=len(content),
        classes=len(card.classes),
        classes_sha256=sha256_json(list(card.classes)),
        gates=tuple(_passed(finding) for finding in findings),
        limits=params.hash("gates"),
        gate_split=_gate_split(layout) if findings else "",
        held_against=held_against,
        error=error,
        images=images,
        made_from={
            **{name: made_from.get(name, "unknown")[:100] for name in MADE_FROM},
            **{name: made_from[name][:100] for name in (VARIANT_OF,) if name in made_from},
        },
        time=now(),
        by=who(),
        run=run,
    )


def _passed(finding: Finding) -> Passed:
    if not finding.passed:
        raise UserError(f"the gate {finding.gate} did not let it through: {finding.reason}")
    values = finding.as_json()
    return Passed(finding.gate, values["figure"], values["limit"])


def _gate_split(layout: Layout) -> str:
    from pipelines.data.prepared import load_split

    return sha256_json(list(load_split(layout.prepared, "gate").hashes))


def sign_beside(layout: Layout, candidate: Version, statement: Statement, scratch: Path) -> None:
    """Put into a version's folder what lets anyone check it: the signature and the statement.

    Args:
        layout: The checkout, for its key.
        candidate: The version.
        statement: Signed.
        scratch: An empty directory.

    Raises:
        UserError: If the store does not take them.
        Unavailable: If it does not answer.
    """
    from pipelines.core.files import write_text
    from pipelines.provenance import signing
    from pipelines.registry import version_files

    bundle = scratch / version_files.SIGNATURE
    signing.sign(layout, version_files.released_file(layout, statement), bundle)
    version_files.put_beside(layout, candidate, bundle)
    write_text(scratch / version_files.STATEMENT, statement.text + "\n")
    version_files.put_beside(layout, candidate, scratch / version_files.STATEMENT)
