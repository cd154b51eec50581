"""A CycloneDX bill of materials of one version: the model, its data, its code and its packages.

The model's own entry is what CycloneDX calls an ML-BOM: a component of the type
`machine-learning-model` with a `modelCard` (CycloneDX 1.6, component/modelCard). Equal inputs on
equal packages give equal bytes: no time, and a serial number derived from the model's hash.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from pipelines.data.prepared import SPLITS, Card

_NAMESPACE = uuid.UUID("6f0d7f5e-2a0b-5b7e-9d5c-1d2c6f4b8a31")
"""Of serial numbers: a constant of this project."""


def _packages() -> list[Component]:
    """Return the installed distributions, by name."""
    found = {}
    for one in distributions():
        name = one.metadata["Name"]
        if name:  # a broken installation leaves folders without one
            found[name.lower().replace("_", "-")] = one.version
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pkg:pypi/{name}@{version}",
            purl=PackageURL("pypi", name=name, version=version),
        )
        for name, version in sorted(found.items())
    ]


def _sha256(value: str) -> list[HashType]:
    known = len(value) == 64
    return [HashType(alg=HashAlgorithm.SHA_256, content=value)] if known else []


def _data(card: Card) -> Component:
    counts = {f"examples.{name}": str(card.total(name)) for name in SPLITS}
    files = {f"file.{name}": value for name, value in card.files.items()}
    return Component(
        name=card.source,
        version=card.data_hash[:12],
        type=ComponentType.DATA,
        bom_ref=f"data:{card.data_hash}",
        hashes=_sha256(card.data_hash),
        properties=[Property(name=k, value=v) for k, v in sorted({**counts, **files}.items())],
    )


def _metrics(figures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    if not figures:
        return []
    evaluation, verification = figures["evaluation"], figures["verification"]
    found = [
        {"type": "test error, %", "value": str(evaluation["test_error"]), "slice": "test"},
        {"type": "largest difference from torch", "value": str(verification["largest_difference"])},
    ]
    for row in evaluation.get("classes", []):
        if isinstance(row, dict) and row.get("error") is not None:
            name = f"test, {row.get('name', '?')}"
            found.append({"type": "test error, %", "value": str(row["error"]), "slice": name})
    return found


def _model_card(
    card: Card, made_from: Mapping[str, str], figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    form = card.form
    shape = ", ".join(map(str, form.input_shape))
    return {
        "modelParameters": {
            "approach": {"type": "supervised" if form.classes or form.values else "unsupervised"},
            "task": f"{form.task} of {form.kind}",
            "architectureFamily": "neural network",
            "modelArchitecture": f"{made_from.get('network', 'unknown')}, trained by "
            f"{made_from.get('method', 'unknown')}, folded",
            "datasets": [{"ref": f"data:{card.data_hash}"}],
            "inputs": [{"format": f"{form.dtype} [batch, {shape}]"}],
            "outputs": [{"format": form.answers_told()}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(figures)},
        "considerations": {
            "useCases": [f"{form.task}, for data like these"],
            "technicalLimitations": [
                "an input unlike the training data is answered all the same",
                "inputs unlike the training data are not recognised as such",
            ],
        },
    }


def bill_of_materials(
    name: str,
    sha256: str,
    card: Card,
    made_from: Mapping[str, str],
    figures: Mapping[str, Mapping[str, Any]],
    files: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the bill of materials as CycloneDX 1.6 JSON.

    Args:
        name: The registered model's name.
        sha256: Of the ONNX file.
        card: The data's.
        made_from: What `pipelines.provenance.lineage.lineage` returned.
        figures: The reports `evaluation` and `verification`; empty for a variant, which is measured
            by its gates.
        files: Name and sha256 of the files that lie beside the model.
    """
    reference = f"model:{sha256}"
    model = Component(
        name=name,
        version=sha256[:12],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        hashes=_sha256(sha256),
        properties=[Property(name=f"lineage.{k}", value=v) for k, v in sorted(made_from.items())],
        components=[
            Component(
                name=file, type=ComponentType.FILE, bom_ref=f"file:{file}", hashes=_sha256(digest)
            )
            for file, digest in files
        ],
    )
    data, packages = _data(card), _packages()
    bom = Bom(components=[data, *packages], serial_number=uuid.uuid5(_NAMESPACE, sha256))
    bom.metadata.component = model
    bom.register_dependency(model, [data, *packages])
    written: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    written["metadata"].pop("timestamp", None)
    # The library knows the type, not yet the card that belongs to it.
    written["metadata"]["component"]["modelCard"] = _model_card(card, made_from, figures)
    return json.dumps(written, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
