"""Variants of a champion: made, judged by gates of their own, released as models of their own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from finished_checkout import FinishedCheckout
from git_commands import git
from onnx import numpy_helper
from small_checkout import SOURCE
from starts import Starts, move_database
from stored_versions import MODEL

from pipelines.cli.app import app
from pipelines.core.config import GatesConfig, Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.gates import speed
from pipelines.gates.of_variants import GATES_OF_VARIANTS
from pipelines.gates.variant_limits import VariantLimits
from pipelines.registry import versions as registry
from pipelines.registry.state import read_state
from pipelines.registry.version_files import MODEL_FILE, champion
from pipelines.release import gc as garbage
from pipelines.release import promote as promotion
from pipelines.release import register as registering
from pipelines.release.audit import Verdict, walk
from pipelines.release.hold_to_gates import hold_to_gates
from pipelines.release.rebuild import rebuild
from pipelines.release.repair import repair
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.variants import build_variant as building
from pipelines.variants import release_variant as releasing
from pipelines.variants.kinds import limits_of
from pipelines.variants.make_variants import make_variants
from pipelines.variants.side_by_side import BLOCKED, LIVE, NOT_MADE, VariantRow

FP16, INT8, TRUNCATED = (f"{MODEL}-{kind}" for kind in ("fp16", "int8", "truncated"))


@pytest.fixture(autouse=True)
def _quickly_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.02)


def roomy(params: Params) -> Params:
    """Limits under which a model of microseconds is not refused for its few casts."""
    return replace(params, gates=replace(params.gates, latency=1e6, margin=0.2))


@pytest.fixture
def made(starts: Starts, layout: Layout) -> FinishedCheckout:
    """A checkout with a champion."""
    found = starts.released(layout, 0.0)
    return replace(found, params=roomy(found.params))


def variants(made: FinishedCheckout, *kinds: str) -> dict[str, VariantRow]:
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


@pytest.fixture(scope="session")
def with_fp16(
    starts: Starts, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Layout], FinishedCheckout]:
    """Checkouts with a champion and its fp16 variant, made once."""
    kept = Layout(tmp_path_factory.mktemp("variants") / "checkout")
    kept.state.mkdir(parents=True)
    found = starts.released(kept, 0.0)
    found = replace(found, params=roomy(found.params))
    assert variants(found, "fp16")[FP16].state == LIVE

    def copy(layout: Layout) -> FinishedCheckout:
        shutil.rmtree(layout.root)
        shutil.copytree(kept.root, layout.root, symlinks=True)
        move_database(layout.state / "mlflow.db", kept.root, layout.root)
        return replace(found, layout=layout)

    return copy


def stored(layout: Layout, model: str, number: int) -> Path:
    where = tracking.connect(layout).get_model_version_download_uri(model, str(number))
    return Path(where.removeprefix("file://")) / MODEL_FILE


def broken(made: FinishedCheckout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fp16 variant have a weight that is no number, as an overflow makes it."""
    maker = building._MAKERS["fp16"]

    def make(base: object) -> tuple[bytes, str]:
        content, how = maker(base)  # type: ignore[arg-type]
        model = onnx.load_model_from_string(content)
        tensor = next(t for t in model.graph.initializer if t.name == "weight")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(values, "weight"))
        return model.SerializeToString(), how

    monkeypatch.setitem(building._MAKERS, "fp16", make)


def test_a_broken_variant_is_blocked_by_name_and_nothing_answers_from_it(
    made: FinishedCheckout, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(made, monkeypatch)
    row = variants(made, "fp16")[FP16]
    assert row.state == BLOCKED
    assert row.blocked_by[0] == "weights"
    assert "NaN or infinite values: 'weight' 1" in row.reason
    assert row.version == 1  # it is there to be looked at
    with pytest.raises(UserError, match="no version is champion"):
        champion(made.layout, FP16)
    # What was refused is not asked again.
    assert variants(made, "fp16")[FP16].reason.startswith("nothing new: blocked by weights")


def opened(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a checkout one that commands find."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, layout.root / name)
    monkeypatch.chdir(layout.root)


def test_a_slow_variant_is_shown_and_is_no_error_of_the_command(
    made: FinishedCheckout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def strict(kind: str, gates: GatesConfig) -> VariantLimits:
        return replace(limits_of(kind, gates), latency=0.01, agreement=1.0)

    monkeypatch.setattr(releasing, "limits_of", strict)
    opened(made.layout, monkeypatch)
    text = made.layout.params.read_text(encoding="utf-8")
    write_text(made.layout.params, text.replace("margin: 0.02 ", "margin: 0.2 ", 1))
    with patch.dict(os.environ):  # opening a checkout is for a whole process
        assert not app(["variants", "--only", "fp16", "--json"], standalone_mode=False)
        first, row = json.loads(capsys.readouterr().out)
        assert (first["name"], first["state"]) == (MODEL, LIVE)
        assert (row["state"], row["blocked_by"]) == (BLOCKED, ["latency"])
        for figure in ("error", "agreement", "size", "p50_ms", "throughput"):
            assert row[figure] is not None
        # Nothing could be judged: that is one.
        assert app(["variants", "--only", "truncated"], standalone_mode=False) == 1
    assert "not made" in capsys.readouterr().out


def test_a_tampered_variant_is_refused(
    with_fp16: Callable[[Layout], FinishedCheckout], layout: Layout
) -> None:
    made = with_fp16(layout)
    found = champion(made.layout, FP16)
    shutil.copy(champion(made.layout, MODEL).path, stored(made.layout, FP16, 1))
    found.path.unlink()
    with pytest.raises(UserError, match="damaged or was exchanged"):
        champion(made.layout, FP16)


def test_predict_answers_from_a_variant(
    with_fp16: Callable[[Layout], FinishedCheckout],
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = with_fp16(layout)
    opened(layout, monkeypatch)
    image = str(made.layout.prepared / "sample.png")
    with patch.dict(os.environ):
        app(["predict", image, "--model", FP16, "--json"], standalone_mode=False)
        (answer,) = json.loads(capsys.readouterr().out)["answers"]
        app(["predict", image, "--json"], standalone_mode=False)
        (champions,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["label"] == champions["label"]
    assert answer["probability"] == pytest.approx(champions["probability"], abs=0.01)


def test_repair_and_gc_know_variants(
    with_fp16: Callable[[Layout], FinishedCheckout], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = with_fp16(layout)
    client = tracking.connect(layout)
    client.delete_registered_model_alias(FP16, "champion")
    stored(layout, FP16, 1).unlink()
    assert all(finding.mended for finding in repair(layout, FP16))
    assert champion(layout, FP16).warnings == ()
    assert sha256_file(stored(layout, FP16, 1)) == champion(layout, FP16).statement.sha256

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git(layout.root, "init", "-q")
    write_text(layout.root / ".dvc/config", "[core]\n    analytics = false\n")
    broken(made, monkeypatch)
    monkeypatch.setattr(building, "_read", lambda place: None)
    assert variants(made, "fp16")[FP16].version == 2
    client.delete_registered_model_alias(FP16, "challenger")
    for model in (MODEL, FP16):
        garbage.collect(layout, model, keep=0, dry=False, report=lambda line: None)
    assert [v.number for v in registry.versions(client, FP16)] == [1]
    assert stored(layout, FP16, 1).is_file()
    assert stored(layout, MODEL, 1).is_file()


@pytest.mark.slow  # five judgements
def test_a_new_champion_gets_variants_of_its_own_and_a_rollback_is_obeyed(
    with_fp16: Callable[[Layout], FinishedCheckout], layout: Layout
) -> None:
    made = with_fp16(layout)
    other = FinishedCheckout.make(layout, 1.0, 0)
    done = registering.register(layout, made.params, None)
    assert promotion.promote(layout, made.params, done.version).promoted
    row = variants(replace(other, params=made.params), "fp16")[FP16]
    assert (row.state, row.version) == (LIVE, 2)
    # The first champion again: its variant was put aside by no person.
    promotion.rollback(layout, MODEL, None, "as before")
    row = variants(made, "fp16")[FP16]
    assert (row.state, row.version) == (LIVE, 1)
    # A variant that a person rolled back from stays away.
    promotion.rollback(layout, FP16, None, "answers oddly")
    row = variants(made, "fp16")[FP16]
    assert (row.state, row.version) == (BLOCKED, 1)
    assert "rolled back from (answers oddly)" in row.reason
    assert champion(layout, FP16).version == 2


def test_lineage_leads_from_a_variant_to_its_champion(
    with_fp16: Callable[[Layout], FinishedCheckout], layout: Layout
) -> None:
    made = with_fp16(layout)
    links = {link.name: link for link in walk(layout, registry.find_version(layout, FP16, "1"))}
    assert not [name for name, link in links.items() if link.verdict is Verdict.BROKEN]
    assert links["variant of"].verdict is Verdict.HOLDS
    assert links["variant of"].value == champion(made.layout, MODEL).statement.sha256
    assert links["signature"].verdict is Verdict.HOLDS


def test_what_is_no_way_to_a_variant_is_refused(
    with_fp16: Callable[[Layout], FinishedCheckout],
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = with_fp16(layout)
    named = replace(made.params, registry=replace(made.params.registry, model=FP16))
    with pytest.raises(UserError, match="`prong variants` judges it"):
        promotion.promote(layout, named, 1)
    with pytest.raises(UserError, match="`prong variants` judges it"):
        hold_to_gates(layout, made.params, FP16, 1)
    with pytest.raises(UserError, match="a variant is not trained"):
        rebuild(layout, registry.find_version(layout, FP16, "1"))
    with pytest.raises(UserError, match=r"--only 'fp8': allowed: fp16, int8, truncated"):
        make_variants(layout, made.params, MODEL, ("fp8",))
    with pytest.raises(UserError, match="is a model of variants already"):
        make_variants(layout, made.params, FP16, ("fp16",))
    with pytest.raises(UserError, match="no version of 'other' is registered"):
        make_variants(layout, made.params, "other", ("fp16",))
    (layout.state / "keys/signing.pem").rename(layout.state / "lost.pem")
    with pytest.raises(UserError, match="the release key is not here"):
        make_variants(layout, made.params, MODEL, ("fp16",))
