"""A checkout that was moved or copied: it answers from its own files, and touches no other's."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from hypothesis import given
from hypothesis import strategies as st
from released_checkout import MODEL, contents, model_of

from pipelines.core.errors import UserError
from pipelines.core.files import sha256_file, write_text
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import gc as garbage
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts, locations

ID = "0123456789abcdef" * 2


@pytest.fixture
def original(put_away: Path, moved: Layout) -> Iterator[Layout]:
    """The checkout where it was made, so that the other one is a copy beside it."""
    place = put_away.with_name("first place")
    shutil.copytree(put_away, place)
    yield Layout(place)
    shutil.rmtree(place)


def test_a_moved_checkout_finds_its_champion_and_writes_nothing_for_it(moved: Layout) -> None:
    database = moved.state / "mlflow.db"
    before = database.read_bytes()
    number, path = version_files.champion_file(moved, MODEL)
    assert number == 2
    assert sha256_file(path) == path.stem
    assert database.read_bytes() == before


def test_a_moved_checkout_goes_on(put_away: Path, moved: Layout) -> None:
    (moved.root / ".dvc").mkdir()
    made = FinishedCheckout.make(moved, 2.0, 0)
    done = release.register(moved, made.params, None)
    assert (done.version, done.created) == (3, True)
    assert model_of(moved, 3).is_relative_to(moved.state / "artifacts")
    assert promotion.promote(moved, made.with_margin(0.9), 3).promoted
    assert promotion.rollback(moved, MODEL, "1", "").version == 1
    assert version_files.champion_file(moved, MODEL)[0] == 1

    fourth = release.register(moved, FinishedCheckout.make(moved, 3.0, 0).params, None)
    folder = moved.state / "artifacts"
    tracking.connect(moved).delete_registered_model_alias(MODEL, "challenger")
    count = len(list(folder.rglob("model.onnx")))
    garbage.collect(moved, MODEL, keep=0, dry=False, report=print)
    assert [row.number for row in registry.list_versions(moved, MODEL)] == [3, 2, 1]
    assert len(list(folder.rglob("model.onnx"))) == count - 1
    assert fourth.version == 4
    assert not put_away.with_name("first place").exists()


def test_a_training_after_the_move_leaves_its_files_in_the_checkout(
    put_away: Path, moved: Layout
) -> None:
    with tracking.training_run(moved, experiment=MODEL, params={}, tags={}) as run:
        pass
    tracking.connect(moved).log_text(run.run_id, "here", "note.txt")
    (note,) = moved.state.rglob("note.txt")
    assert note.is_relative_to(moved.state / "artifacts")
    assert not put_away.with_name("first place").exists()
    # MLflow's own pages find what was there before, too.
    client = tracking.connect(moved)
    (first, *_) = client.search_model_versions(f"name = '{MODEL}'")
    assert client.list_artifacts(first.run_id)
    assert locations.follow_move(moved) == 0


def test_a_copy_answers_from_its_own_files_and_leaves_the_originals(
    original: Layout, moved: Layout
) -> None:
    champion = model_of(original, 2)
    champion.write_bytes(b"damaged")
    write_text(champion.with_name("added.txt"), "x")
    before = contents(original.root)
    assert version_files.champion_file(moved, MODEL)[0] == 2
    where = tracking.connect(moved).get_model_version_download_uri(MODEL, "2")
    assert "added.txt" not in {entry.path for entry in artifacts.entries(moved, where)}

    (moved.root / ".dvc").mkdir()
    release.register(moved, FinishedCheckout.make(moved, 2.0, 0).params, None)
    tracking.connect(moved).delete_registered_model_alias(MODEL, "challenger")
    garbage.collect(moved, MODEL, keep=0, dry=False, report=print)
    assert len(registry.list_versions(moved, MODEL)) == 2
    assert contents(original.root) == before


def test_what_a_copy_has_lost_is_not_taken_from_the_original(
    original: Layout, moved: Layout
) -> None:
    inside = model_of(original, 2).parent.relative_to(original.root)
    shutil.rmtree(moved.root / inside)
    with pytest.raises(UserError, match="gone"):
        version_files.champion_file(moved, MODEL)
    assert version_files.champion_file(original, MODEL)[0] == 2
    where = model_of(original, 2).parent.as_uri()
    before = contents(original.root)
    artifacts.remove(moved, where)  # nothing is there to remove
    assert contents(original.root) == before


def test_artifacts_of_an_own_choice_stay_where_they_are(moved: Layout, tmp_path: Path) -> None:
    chosen = tmp_path / "disk/artifacts" / ID / "artifacts"
    chosen.mkdir(parents=True)
    assert artifacts.resolved(moved, chosen.as_uri()) == chosen.as_uri()
    with pytest.raises(UserError, match="outside this project's artifacts"):
        artifacts.put(moved, chosen.as_uri(), moved.root / "models/model.onnx")


def test_an_experiment_that_leads_elsewhere_gets_nothing(moved: Layout, tmp_path: Path) -> None:
    client = tracking.connect(moved)
    client.create_experiment("planted", (tmp_path / "elsewhere").as_uri())
    with (
        pytest.raises(UserError, match="outside this project's artifacts"),
        tracking.training_run(moved, experiment="planted", params={}, tags={}),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_all_addresses_are_rewritten_or_none(moved: Layout) -> None:
    database = moved.state / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON model_versions "
            "BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    before = database.read_bytes()
    assert locations.follow_move(moved) == 0
    assert database.read_bytes() == before
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("DROP TRIGGER full")
    # The experiments, and of each version its run, upload, source and storage.
    assert locations.follow_move(moved) >= 2 + 4 * 2
    assert version_files.champion_file(moved, MODEL)[0] == 2


names = st.sampled_from(
    ["artifacts", "models", f"m-{ID}", ID, "0", "..", ".", "", "%2e%2e", "%2f", ".prong", "out"]
)
heads = st.sampled_from(["", "/", "file:", "file://", "file:///", "file://host/", "FILE:///"])


@given(heads, st.lists(names, max_size=8), st.text(max_size=3))
def test_no_address_leads_from_the_checkout_to_anywhere_else(
    tmp_path_factory: pytest.TempPathFactory, head: str, parts: list[str], end: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    layout, outside = Layout(root), root / "outside"
    artifacts_root = layout.state / "artifacts"
    (artifacts_root / "models").mkdir(parents=True, exist_ok=True)
    outside.mkdir(exist_ok=True)
    link = artifacts_root / "models" / f"m-{ID}"
    if not link.is_symlink():
        link.symlink_to(outside)
    where = head + "/".join(parts) + end
    try:
        found = artifacts.resolved(layout, where)
        removable = artifacts.is_removable(layout, where)
    except UserError:  # not an address
        return
    path = locations.local_path(found)
    if found != where:
        assert path is not None
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(artifacts_root))
    if removable:
        assert path is not None
        assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(artifacts_root))
