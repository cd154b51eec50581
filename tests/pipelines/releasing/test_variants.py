"""Variants of a champion: made, judged by gates of their own, released as models of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from finished_checkout import FinishedCheckout
from onnx import numpy_helper
from starts import Starts
from stored_versions import MODEL

from pipelines.core.config import Params
from pipelines.core.errors import Failed, UserError
from pipelines.core.files import read_json, sha256_file
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.gates.of_variants import GATES_OF_VARIANTS
from pipelines.provenance import keys
from pipelines.registry import history
from pipelines.registry import versions as registry
from pipelines.registry.state import read_state
from pipelines.registry.version_files import champion
from pipelines.release import gc as garbage
from pipelines.release import promote as promotion
from pipelines.release import repair as mending
from pipelines.release.hold_to_gates import hold_to_gates
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.variants import build as building
from pipelines.variants.comparison import BLOCKED, LIVE, NOT_MADE, Row
from pipelines.variants.make_variants import make_variants

FP16, INT8, TRUNCATED = (f"{MODEL}-{kind}" for kind in ("fp16", "int8", "truncated"))


def roomy(params: Params) -> Params:
    """Limits under which a model of microseconds is not refused for its few casts."""
    return replace(params, gates=replace(params.gates, latency=1e6, margin=0.2))


@pytest.fixture
def made(starts: Starts, layout: Layout) -> FinishedCheckout:
    """A checkout with a champion."""
    found = starts.released(layout, 0.0)
    return replace(found, params=roomy(found.params))


def variants(made: FinishedCheckout, *kinds: str) -> dict[str, Row]:
    rows = make_variants(made.layout, made.params, MODEL, kinds or ("fp16", "int8", "truncated"))
    return {row.name: row for row in rows}


def registry_as_it_is(layout: Layout) -> dict[str, list[str]]:
    """All that the registry says of the variants, but for times."""
    client = tracking.connect(layout)
    found = {}
    for model in (FP16, INT8):
        state = read_state(layout, client, model)
        tags = [json.dumps(dict(v.tags), sort_keys=True) for v in registry.versions(client, model)]
        found[model] = [*tags, *(entry.hash for entry in state.history.entries)]
    return found


def test_variants_are_models_of_their_own_and_made_once(made: FinishedCheckout) -> None:
    rows = variants(made)
    assert [row.state for row in rows.values()] == [LIVE, LIVE, LIVE, NOT_MADE]
    layout = made.layout
    images = load_split(layout.prepared, "gate").inputs
    base = champion(layout, MODEL)
    asked = OnnxModel.load(base.path, "cpu")
    for name, kind in ((FP16, "fp16"), (INT8, "int8")):
        found = champion(layout, name)
        assert (found.version, found.warnings) == (1, ())
        statement = found.statement
        assert statement.made_from["variant_of"] == f"v1 {base.statement.sha256}"
        assert [passed.gate for passed in statement.gates] == list(GATES_OF_VARIANTS)
        assert statement.held_against is None
        version = registry.find_version(layout, name, "champion")
        lineage = version.under(registry.LINEAGE)
        assert lineage["variant"] == kind
        assert lineage["onnx_sha256"] == statement.sha256 == sha256_file(found.path)
        model = OnnxModel.load(found.path, "cpu")
        assert model.card == asked.card
        labels = [one.raw(images).argmax(axis=1) for one in (model, asked)]
        assert (labels[0] == labels[1]).mean() > 0.9
        row = rows[name]
        assert row.size == found.path.stat().st_size < 0.95 * base.path.stat().st_size
        assert row.error == statement.error
        assert row.low < row.error < row.high
        assert row.agreement == (labels[0] != labels[1]).mean()
        assert row.p50_ms > 0
        assert row.throughput > 0
    assert "network behind the champion is not at hand" in rows[TRUNCATED].reason
    first = rows[MODEL]
    assert (first.version, first.size) == (1, base.path.stat().st_size)
    assert first.error == base.statement.error
    told = read_json(layout.reports / "variants.json")
    assert [row["name"] for row in told] == [MODEL, FP16, INT8, TRUNCATED]
    assert (layout.reports / "variants.png").read_bytes().startswith(b"\x89PNG")

    before = registry_as_it_is(layout)
    again = variants(made)
    assert registry_as_it_is(layout) == before
    same = [replace(row, reason="") for row in again.values()]
    assert same == [replace(row, reason="") for row in rows.values()]
