"""A version's drift graph: named by the signed statement, fetched, checked, put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from finished_checkout import FinishedCheckout
from released_checkout import MODEL, model_of

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_split
from pipelines.drift.fit_drift import fit
from pipelines.provenance.attachments import DRIFT
from pipelines.provenance.lineage import lineage
from pipelines.registry.version_files import cached_drift, champion, drift_file
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.health import standing
from pipelines.release.repair import repair
from pipelines.systems.onnx.drift_model import DriftModel

Make = Callable[..., FinishedCheckout]


def _release(made: FinishedCheckout, drift: bytes | None) -> None:
    if drift is not None:
        made.layout.drift.write_bytes(drift)
    params = made.with_margin(0.9)
    number = release.register(made.layout, params, None).version
    assert promotion.promote(made.layout, params, number).promoted


def _drift(layout: Layout) -> bytes:
    splits = [load_split(layout.prepared, name) for name in ("train", "gate")]
    return fit(layout.onnx.read_bytes(), splits[0], [splits[1].inputs])


def test_the_drift_graph_that_was_released_is_fetched_and_no_other(checkout: Make) -> None:
    made = checkout()
    layout = made.layout
    _release(made, _drift(layout))
    found = champion(layout, MODEL)
    path = drift_file(layout, found)
    assert path is not None
    assert path.read_bytes() == layout.drift.read_bytes()
    assert found.statement.made_from["drift_sha256"] == sha256_file(path)
    drift = DriftModel.load(path, model=found.statement.sha256)
    test = load_split(layout.prepared, "test").inputs
    assert np.isfinite(drift.scores(test)).all()
    assert not standing(layout, MODEL).problems

    # Exchanged in the store: what is cached is still answered from, and nothing else.
    stored = model_of(layout, 1).with_name(DRIFT)
    stored.write_bytes(layout.onnx.read_bytes())
    assert drift_file(layout, found.statement) == path
    path.write_bytes(b"exchanged as well")
    with pytest.raises(UserError, match="drift graph is damaged or was exchanged"):
        drift_file(layout, found)
    assert not path.exists()
    assert ["drift graph" in problem.said for problem in standing(layout, MODEL).problems] == [True]
    assert all(problem.serves for problem in standing(layout, MODEL).problems)

    # The checkout still has it.
    (mended,) = repair(layout, MODEL)
    assert mended.mended
    assert stored.read_bytes() == layout.drift.read_bytes()
    assert drift_file(layout, found) == cached_drift(layout, sha256_file(stored))
    stored.unlink()
    cached_drift(layout, found.statement.made_from["drift_sha256"]).unlink()
    layout.drift.write_bytes(b"another")
    (lost,) = repair(layout, MODEL)
    assert not lost.mended
    assert "gone from the store" in lost.found
    with pytest.raises(UserError, match="is gone"):
        drift_file(layout, found)


def test_a_drift_graph_of_another_model_is_not_released(checkout: Make) -> None:
    made = checkout()
    layout = made.layout
    layout.drift.write_bytes(_drift(layout))
    assert lineage(layout, made.params)["drift_sha256"] == sha256_file(layout.drift)
    FinishedCheckout.make(layout, 0.5, 0)
    assert lineage(layout, made.params)["drift_sha256"] == "unknown"


@pytest.mark.parametrize("left", [None, b"", b"damaged"])
def test_a_version_without_one_is_released_and_says_so(checkout: Make, left: bytes | None) -> None:
    made = checkout()
    _release(made, left)
    found = champion(made.layout, MODEL)
    assert found.statement.made_from["drift_sha256"] == "unknown"
    assert drift_file(made.layout, found) is None
    before = {k: v for k, v in found.statement.made_from.items() if k != "drift_sha256"}
    assert drift_file(made.layout, replace(found.statement, made_from=before)) is None
    assert not model_of(made.layout, 1).with_name(DRIFT).exists()
    assert not standing(made.layout, MODEL).problems
    assert not repair(made.layout, MODEL)
