"""What the gates gather, from real versions in a real registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from faulty_versions import again, exchange, register, reweigh
from finished_checkout import FinishedCheckout, prepare_digits
from small_checkout import SOURCE, Checkout
from stored_versions import MODEL, stored

from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import sha256_file
from pipelines.data.prepared import Card, Split
from pipelines.gates.catalogue import found, in_order
from pipelines.gates.evidence import Contender, Evidence
from pipelines.gates.fetched import fetch
from pipelines.gates.finding import Finding, from_tags
from pipelines.gates.judging import GATES, judge
from pipelines.registry import versions as registry
from pipelines.registry.state import read_state, statement_of
from pipelines.registry.stored_version import StoredVersion
from pipelines.registry.versions import Version
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.best_champions import best_champions
from pipelines.release.hold_to_gates import hold_to_gates, show
from pipelines.systems import mlflow as tracking
from pipelines.systems.scratch import scratch

Make = Callable[..., FinishedCheckout]


def version(made: FinishedCheckout, number: int) -> Version:
    return registry.get_version(tracking.connect(made.layout), MODEL, number)


def stored_version(made: FinishedCheckout, number: int) -> StoredVersion:
    return StoredVersion(made.layout, version(made, number))


def judged(made: FinishedCheckout, number: int, champion: int | None = None) -> dict[str, Finding]:
    old = None if champion is None else stored_version(made, champion)
    found = judge(made.layout, made.params, stored_version(made, number), old)
    assert [finding.gate for finding in found] == list(GATES)
    return {finding.gate: finding for finding in found}


def judged_here(
    made: FinishedCheckout, number: int, champion: int | None = None
) -> dict[str, Finding]:
    """As `judged`, in this process: without a limit, and to be looked into."""
    old = None if champion is None else stored_version(made, champion)
    past = [] if old is None else [old]
    with scratch(made.layout.state, "gates") as folder:
        asked = fetch(made.layout, made.params, stored_version(made, number), old, past, folder)
        (folder / "own").mkdir()
        evidence = asked.evidence(folder / "own")
        return {name: found(name, evidence) for name in in_order()}


@pytest.mark.slow
def test_any_version_can_be_held_to_the_gates(
    registered: FinishedCheckout, capsys: pytest.CaptureFixture[str]
) -> None:
    made = registered
    promotion.promote(made.layout, made.params, 1)
    lost = register(made, reweigh("bias", lambda bias: bias * 0))
    findings = hold_to_gates(made.layout, made.params, MODEL, lost)
    assert not show(MODEL, lost, findings, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["may_be_champion"] is False
    assert "champion" in said["blocked_by"]
    assert [gate["gate"] for gate in said["gates"]] == list(GATES)
    # The findings are on the version; no alias moved.
    told = {finding.gate: finding for finding in from_tags(version(made, lost).tags)}
    assert told == {finding.gate: finding for finding in findings}
    aliases = registry.aliases(tracking.connect(made.layout), MODEL)
    assert aliases == {"champion": 1, "challenger": lost}
    assert show(MODEL, 1, hold_to_gates(made.layout, made.params, MODEL, 1), as_json=False)
    shown = capsys.readouterr().out
    assert "may be champion" in shown
    assert all(name in shown for name in GATES)


def test_the_command_says_why_and_exits_with_one(registered: FinishedCheckout) -> None:
    made = registered
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(SOURCE / name, made.layout.root / name)
    tracking.connect(made.layout).delete_model_version_tag(MODEL, "1", "lineage.torch")
    done = Checkout(made.layout.root).forked("gates", "1", "--json")
    assert done.code == 1, done.err
    assert json.loads(done.out)["blocked_by"] == ["lineage"]
    assert done.err == ""
    with pytest.raises(UserError, match="version 7: does not exist; there are: 1"):
        hold_to_gates(made.layout, made.params, MODEL, 7)


def test_a_file_that_is_not_a_model_is_refused_by_the_format_gate(
    registered: FinishedCheckout,
) -> None:
    made = registered
    number = again(made)
    path = stored(made.layout, number)
    for content in (b"", b"not a model", path.read_bytes()[:1000]):
        path.write_bytes(content)
        client = tracking.connect(made.layout)
        for key in ("onnx_sha256", "lineage.onnx_sha256"):
            client.set_model_version_tag(MODEL, str(number), key, sha256_file(path))
        found = judged(made, number)
        stopped = [name for name, finding in found.items() if finding.verdict == "fail"]
        # No bytes are a model without a graph: what is wrong with that is its schema.
        assert stopped == (["format"] if content else ["schema"])
        assert found["runtime"].verdict == "not run"


def test_no_damage_makes_the_judge_raise(registered: FinishedCheckout) -> None:
    made = registered
    number = again(made)
    path, draw = stored(made.layout, number), np.random.default_rng(0)
    whole, client = path.read_bytes(), tracking.connect(made.layout)
    small = len(whole) - 28 * 28 * 10 * 4  # most of the file is weights; damage the rest
    for _ in range(25):
        content = bytearray(whole)
        for at in draw.integers(0, min(small, 400), 3):
            content[at] = draw.integers(0, 256)
        path.write_bytes(content)
        for key in ("onnx_sha256", "lineage.onnx_sha256"):
            client.set_model_version_tag(MODEL, str(number), key, sha256_file(path))
        judged_here(made, number)
    path.unlink()
    told = judged(made, number)
    assert told["bytes"].verdict == "not run"
    assert "gone" in told["bytes"].reason
    assert told["lineage"].passed


def test_a_registry_that_is_away_says_nothing_about_the_model(
    registered: FinishedCheckout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = registered
    candidate = stored_version(made, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable):
        judge(made.layout, made.params, candidate, None)


def test_nothing_is_left_of_what_was_downloaded(registered: FinishedCheckout) -> None:
    made = registered
    judged(made, 1, 1)  # the champion's file is kept, once
    before = sorted(made.layout.root.rglob("*"))
    judged(made, 1, 1)
    assert sorted(made.layout.root.rglob("*")) == before


def test_an_empty_gate_split_blocks_and_says_what_to_raise(registered: FinishedCheckout) -> None:
    made = registered
    from pipelines.core.files import read_json, write_json
    from pipelines.data.prepared import load_split, save_split

    split = load_split(made.layout.prepared, "gate")
    empty = replace(split, inputs=split.inputs[:0], targets=split.targets[:0], hashes=())
    save_split(made.layout.prepared, "gate", empty)
    path = made.layout.prepared / "card.json"
    card = read_json(path)
    card["counts"]["gate"] = dict.fromkeys(card["counts"]["gate"], 0)
    write_json(path, card)
    found = judged(made, 1)
    assert found["champion"].verdict == "not run"
    assert "raise data.gate" in found["champion"].reason


def test_figures_of_other_data_are_compared_by_chance(registered: FinishedCheckout) -> None:
    made = registered
    client = tracking.connect(made.layout)
    client.set_model_version_tag(MODEL, "1", "lineage.data_hash", "")
    client.set_model_version_tag(MODEL, "1", "metric.test_error", "15.0")
    skew = judged(made, 1)["skew"]
    assert skew.passed
    assert "others" in skew.reason
    client.set_model_version_tag(MODEL, "1", "metric.test_error", "0.5")
    assert judged(made, 1)["skew"].verdict == "fail"
    client.delete_model_version_tag(MODEL, "1", "metric.test_error")
    gone = judged(made, 1)["skew"]
    assert gone.verdict == "not run"
    assert "metric.test_error" in gone.reason


def test_the_champion_is_loaded_and_scored_once(
    registered: FinishedCheckout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the candidate is held against, and the best there ever was."""
    made = registered
    assert promotion.promote(made.layout, made.params, 1).promoted
    FinishedCheckout.make(made.layout, 100.0, 0)
    release.register(made.layout, made.params, None)
    loaded: list[Path] = []
    begin = Contender.__init__

    def counted(self: Contender, path: Path, split: Split, card: Card, checkout: Path) -> None:
        loaded.append(path)
        begin(self, path, split, card, checkout)

    monkeypatch.setattr(Contender, "__init__", counted)
    judged_here(made, 2, 1)
    assert [path.name for path in loaded] == ["version-1.onnx", "model.onnx"]


def best(made: FinishedCheckout, champions: list[Version] | None = None) -> float | None:
    """The lowest error of any champion, where version 2 is the present one."""
    rows = registry.list_versions(made.layout, MODEL) if champions is None else champions
    client = tracking.connect(made.layout)
    state = read_state(made.layout, client, MODEL)
    released = [statement_of(made.layout, state, row.number, row.tags) for row in rows]
    bests = best_champions([one for one in released if one is not None])
    past = [
        StoredVersion(made.layout, registry.get_version(client, MODEL, one.version), one)
        for one in bests
    ]
    champion = stored_version(made, 2)
    return Evidence(
        made.layout, made.params, champion, champion, past, made.layout.state
    ).best_error


def test_the_best_ever_is_scored_on_the_images_of_today(
    registered: FinishedCheckout, tmp_path: Path
) -> None:
    made = registered
    first = promotion.promote(made.layout, made.params, 1)
    second = FinishedCheckout.make(made.layout, 100.0, 0)
    release.register(made.layout, made.params, None)
    wide = replace(made.params.gates, margin=1.0, class_margin=1.0, robustness=1.0)
    assert promotion.promote(made.layout, replace(made.params, gates=wide), 2).promoted
    assert best(made) == pytest.approx(first.error)
    # The data grow: the same two models, other images.
    shutil.rmtree(made.layout.prepared)
    other = prepare_digits(tmp_path / "more", limit=900)
    shutil.copytree(other, made.layout.prepared)
    from pipelines.data.prepared import load_card, load_split
    from pipelines.evaluation.scoring import error
    from pipelines.systems.onnx.runtime import OnnxModel

    split, form = load_split(made.layout.prepared, "gate"), load_card(other).form
    model = OnnxModel.load(stored(made.layout, 1), "cpu")
    assert best(made) == error(model, split, form, made.layout.root).error
    # A champion whose file is gone sets no limit.
    assert best(made, []) is None
    assert second.gate_errors > made.gate_errors


@pytest.mark.slow
def test_the_ratchet_blocks_what_is_as_good_as_a_champion_that_slid(
    registered: FinishedCheckout,
) -> None:
    made = registered
    promotion.promote(made.layout, made.params, 1)
    FinishedCheckout.make(made.layout, 100.0, 0)
    release.register(made.layout, made.params, None)
    gates = replace(made.params.gates, margin=1.0, class_margin=1.0, robustness=1.0)
    wide = replace(made.params, gates=gates)
    assert promotion.promote(made.layout, wide, 2).promoted
    number = again(made)
    # Four of 64 images worse than the best; its equal alone would be within this margin.
    strict = replace(made.params, gates=replace(gates, margin=0.06))
    done = promotion.promote(made.layout, strict, number)
    assert not done.promoted
    assert "best champion ever" in done.reason


@pytest.mark.parametrize("change", [pytest.param("none", marks=pytest.mark.slow), "weights"])
def test_where_the_weights_are_at_hand_parity_is_measured_again(
    checkout: Make, change: str
) -> None:
    """A real, untrained network, folded and exported as the stages do."""
    import torch

    from pipelines.data.prepared import load_card
    from pipelines.export.to_onnx import export
    from pipelines.training.network import NetworkSpec, build, save

    made = checkout()
    card = load_card(made.layout.prepared)
    spec = NetworkSpec(card.form, (len(card.classes),), "prong+", 2, 4)
    torch.manual_seed(0)
    (made.layout.trained / "network.safetensors").unlink()
    save(made.layout.trained, spec, build(spec).state_dict())
    root = Path(__file__).parents[3]
    export(made.layout.trained, made.layout.prepared, made.params, root, made.layout.onnx)

    def name(model: onnx.ModelProto) -> None:
        if change == "weights":
            tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    number = register(made, name)
    found = judged(made, number)
    assert "measured now at batch 1:" in found["parity"].reason
    assert "256:" in found["parity"].reason
    stopped = [gate for gate, finding in found.items() if not finding.passed]
    # It knows nothing, as it was never trained.
    assert stopped == (["floor"] if change == "none" else ["parity", "floor"])
    figure = found["parity"].figure
    assert figure is not None
    assert (figure < 1e-4) if change == "none" else (1e-3 < figure < 1e-1)


def test_a_tensor_without_its_values_is_never_loaded(registered: FinishedCheckout) -> None:
    made = registered
    number = again(made)
    exchange(made, number, lambda model: model.graph.initializer[1].ClearField("raw_data"))
    found = judged(made, number)
    assert found["weights"].verdict == "not run"
    assert found["runtime"].reason == "not loaded: the gate weights did not let it through"
