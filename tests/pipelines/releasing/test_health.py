"""The champion's health, and what puts it right."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import fork_server
import pytest
from finished_checkout import FinishedCheckout, list_few_packages
from registries import Registries
from stored_versions import MODEL, forget, stored

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.release import health
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release.repair import repair
from pipelines.systems import mlflow as tracking

Make = Callable[..., FinishedCheckout]


@pytest.fixture
def one(checkout: Make) -> FinishedCheckout:
    """Version 1 is champion."""
    made = checkout()
    release.register(made.layout, made.params, None)
    assert promotion.promote(made.layout, made.params, 1).promoted
    return made


def test_files_lost_in_the_store_are_noticed_and_put_back(one: FinishedCheckout) -> None:
    layout, path = one.layout, stored(one.layout, 1)
    assert health.standing(layout, MODEL).problems == ()
    shutil.rmtree(path.parent)
    version_files.champion(layout, MODEL)  # from the cache, which says nothing about the store
    (problem,) = health.standing(layout, MODEL).problems
    assert (problem.what, problem.serves) == ("champion v1", False)
    assert "not in the store" in problem.said
    # A run looks as well, and uploads again what is still here.
    assert health.kept_well(layout, MODEL) == ()
    assert path.read_bytes() == layout.onnx.read_bytes()
    # The same bytes can be registered again.
    shutil.rmtree(path.parent)
    assert not release.register(layout, one.params, None).created
    assert path.read_bytes() == layout.onnx.read_bytes()


def test_a_file_that_is_nowhere_any_more_is_said_with_a_way_on(one: FinishedCheckout) -> None:
    layout = one.layout
    stored(layout, 1).unlink()
    forget(layout)
    layout.onnx.unlink()
    (problem,) = health.kept_well(layout, MODEL)
    assert not problem.serves
    (left,) = repair(layout, MODEL)
    assert not left.mended
    assert "prong rollback" in left.done
    with pytest.raises(UserError, match="gone"):
        version_files.champion(layout, MODEL)


def test_a_registry_that_was_emptied_is_no_beginning(one: FinishedCheckout, checkout: Make) -> None:
    layout, client = one.layout, tracking.connect(one.layout)
    client.delete_registered_model(MODEL)
    made = checkout(noise=1.0)
    number = release.register(layout, made.params, None).version
    with pytest.raises(UserError, match=r"entry 1 is gone.*prong repair"):
        promotion.promote(layout, made.params, number)
    assert any("entry 1 is gone" in one.said for one in health.standing(layout, MODEL).problems)
    found = repair(layout, MODEL)
    assert found[0].mended
    assert not all(one.mended for one in found)
    # Version 1 is another now: that is said, nothing is written over it, and it can be given up.
    assert any("another version of this number" in one.found for one in found)
    assert stored(layout, 1).read_bytes() == layout.onnx.read_bytes()
    assert all(one.mended for one in repair(layout, MODEL, begin_anew=True)[-1:])
    assert promotion.promote(layout, made.params, number).promoted
    assert version_files.champion(layout, MODEL).version == number


def test_a_renamed_registry_is_no_beginning(one: FinishedCheckout, checkout: Make) -> None:
    layout, client = one.layout, tracking.connect(one.layout)
    client.rename_registered_model(MODEL, "another")
    with pytest.raises(UserError, match="prong repair"):
        made = checkout(noise=1.0)
        release.register(layout, made.params, None)
        promotion.promote(layout, made.params, 1)
    client.delete_registered_model(MODEL)
    client.rename_registered_model("another", MODEL)
    assert health.standing(layout, MODEL).problems == ()


def judged_for_ever(root: Path) -> None:
    """Promote version 3, whose judgement takes until the process is ended."""
    from pipelines.gates import judging

    list_few_packages()

    def for_ever(*_: object) -> object:
        (root / "judging").touch()
        time.sleep(600)
        raise AssertionError

    judging.judge = for_ever  # type: ignore[assignment]
    layout = Layout(root)
    params = FinishedCheckout.make(layout, 2.0, 2).params
    release.register(layout, params, None)
    promotion.promote(layout, params, None)


def test_a_rollback_does_not_wait_for_a_judgement(on_sqlite: Registries, tmp_path: Path) -> None:
    registry = on_sqlite.at("two")
    root = registry.roots["C"]
    judging = fork_server.start(
        judged_for_ever, root, leaves=tmp_path, cwd=root, env={**registry.env}
    )
    while not (root / "judging").exists():
        assert judging.running(), judging.output()
        time.sleep(0.05)
    start = time.monotonic()
    said = registry.told("B", "rollback")
    assert time.monotonic() - start < 5
    assert (said["version"], said["replaced"]) == (1, 2)
    judging.kill()
    (root / "judging").unlink()
