"""Promotion after registering: who becomes champion, and what stands in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from finished_checkout import FinishedCheckout, write_model
from stored_versions import MODEL, aliases, forget, stored

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import write_json
from pipelines.gates.finding import blocked, from_tags
from pipelines.gates.judging import GATES
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.migrate import migrate
from pipelines.systems import mlflow as tracking
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.runtime import OnnxModel

Make = Callable[..., FinishedCheckout]


def test_the_first_version_becomes_champion_and_a_worse_one_does_not(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    first = promotion.promote(made.layout, made.params, 1)
    assert (first.promoted, first.champion, first.held_against) == (True, 1, None)
    assert first.error == pytest.approx(made.gate_errors / first.images)
    again = promotion.promote(made.layout, made.params, 1)
    assert (again.promoted, again.champion, again.reason) == (False, 1, "already champion")

    worse = checkout(noise=100.0)
    assert worse.gate_errors > made.gate_errors
    release.register(made.layout, made.params, None)
    second = promotion.promote(made.layout, made.params, 2)
    assert (second.promoted, second.champion, second.held_against) == (False, 1, 1)
    assert second.error is not None
    assert first.error is not None
    assert second.error > first.error
    row = registry.list_versions(made.layout, MODEL)[0]
    gate = row.as_json()["gates"]["champion"]
    assert gate["verdict"] == "fail"
    assert gate["reason"] in second.reason
    assert float(row.tags["metric.gate_error"]) == pytest.approx(second.error)

    # The same question is not asked twice; a wider margin is another question.
    assert "nothing new" in promotion.promote(made.layout, made.params, 2).reason
    assert promotion.promote(made.layout, loose(made.params), 2).promoted
    assert aliases(made.layout) == {"champion": 2, "previous": 1}


def loose(params: Params) -> Params:
    """Limits that a much worse model meets."""
    gates = replace(params.gates, margin=0.9, class_margin=0.9, robustness=0.9)
    return replace(params, gates=gates)


def test_an_equal_model_takes_the_champions_place(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    equal = checkout(noise=1.0)
    assert equal.gate_errors == made.gate_errors
    release.register(made.layout, made.params, None)
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion, done.held_against) == (True, 2, 1)
    assert aliases(made.layout) == {"champion": 2, "previous": 1}


def test_tags_are_there_before_the_alias(checkout: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    made = checkout()
    release.register(made.layout, made.params, None)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", crash)
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(made.layout, made.params, 1)
    (row,) = registry.list_versions(made.layout, MODEL)
    assert blocked(from_tags(row.tags), tuple(GATES)) == []
    assert row.aliases == ("challenger",)
    # What broke off is finished by the next call, before it does anything of its own.
    done = promotion.promote(made.layout, made.params, 1)
    assert (done.champion, done.reason) == (1, "already champion")
    assert aliases(made.layout) == {"champion": 1}


@pytest.mark.parametrize("damage", ["exchanged", "gone"])
def test_a_damaged_champion_blocks_and_is_never_loaded(checkout: Make, damage: str) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    checkout(noise=1.0)
    release.register(made.layout, made.params, None)
    forget(made.layout)
    path = stored(made.layout, 1)
    if damage == "gone":
        path.unlink()
    else:
        shutil.copy(made.layout.onnx, path)  # a sound model, but not the one registered
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion) == (False, 1)
    assert "registry.model" in done.reason
    assert damage in done.reason
    (row, _) = registry.list_versions(made.layout, MODEL)
    champion = row.as_json()["gates"]["champion"]
    assert (champion["verdict"], champion["figure"]) == ("not run", None)
    with pytest.raises(UserError, match=damage):
        version_files.champion_file(made.layout, MODEL)
    # A gate that did not run is run again once it can.
    write_model_again = checkout()
    shutil.copy(write_model_again.layout.onnx, path)
    assert promotion.promote(made.layout, made.params, 2).promoted


def test_a_champion_of_another_input_blocks(checkout: Make) -> None:
    made = checkout()
    card = OnnxModel.load(made.layout.onnx, "cpu").card
    small = replace(card, form=replace(card.form, size=8))
    weight = np.zeros((8 * 8 + 1, len(card.classes)), np.float32)
    register_foreign(made, weight, small)
    promotion.promote(made.layout, made.params, 1)
    assert aliases(made.layout) == {"challenger": 1}  # it cannot be scored on these images at all
    vouch_for(made, 1)
    checkout()
    release.register(made.layout, made.params, None)
    done = promotion.promote(made.layout, made.params, 2)
    assert (done.promoted, done.champion) == (False, 1)
    assert "cannot be scored" in done.reason
    assert "registry.model" in done.reason


def vouch_for(made: FinishedCheckout, number: int) -> None:
    """Make a version champion on the word of the key's holder, as `migrate --as-is` does."""
    tracking.connect(made.layout).set_registered_model_alias(MODEL, "champion", str(number))
    migrate(made.layout, made.params, as_is=True, say=print)


def register_foreign(made: FinishedCheckout, weight: np.ndarray, card: OnnxMetadata) -> None:
    """Register a model made for other data than the checkout's, as another checkout would."""
    from safetensors.numpy import load_file, save_file

    prepared = made.layout.prepared
    split = load_file(prepared / "test.safetensors")
    before = {name: (prepared / name).read_bytes() for name in ("test.safetensors", "card.json")}
    images = split["inputs"][:, :, : card.form.size, : card.form.size]
    save_file({**split, "inputs": np.ascontiguousarray(images)}, prepared / "test.safetensors")
    said = json.loads(before["card.json"])
    write_json(prepared / "card.json", {**said, "form": said["form"] | {"size": card.form.size}})
    write_model(made.layout.onnx, weight, card)
    try:
        release.register(made.layout, made.params, None)
    finally:
        for name, content in before.items():
            (prepared / name).write_bytes(content)
