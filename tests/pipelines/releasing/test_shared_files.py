"""Stored files that several versions need: they go with the last one, and no other file goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from finished_checkout import FinishedCheckout
from released_checkout import MODEL, contents, model_of

from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import gc as garbage
from pipelines.release import register as release
from pipelines.release.references import Reference, References
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow import artifacts


@pytest.fixture
def layout(moved: Layout) -> Layout:
    """Versions 1 and 2 were live; version 3 never was."""
    (moved.root / ".dvc").mkdir()
    release.register(moved, FinishedCheckout.make(moved, 2.0, 0).params, None)
    tracking.connect(moved).delete_registered_model_alias(MODEL, "challenger")
    return moved


def collect(layout: Layout) -> list[str]:
    said: list[str] = []
    garbage.collect(layout, MODEL, keep=0, dry=False, report=said.append)
    return said


def numbers(layout: Layout) -> list[int]:
    return [row.number for row in registry.list_versions(layout, MODEL)]


def test_a_copy_of_the_champion_goes_and_leaves_the_champion_its_files(layout: Layout) -> None:
    client = tracking.connect(layout)
    before = contents(model_of(layout, 2).parent)
    client.copy_model_version(f"models:/{MODEL}/2", MODEL)  # as a fourth
    said = collect(layout)
    assert f"its files stay: {MODEL} version 2 needs them" in said[0]
    assert numbers(layout) == [2, 1]
    assert contents(model_of(layout, 2).parent) == before
    shutil.rmtree(layout.state / "cache")
    assert version_files.champion_file(layout, MODEL)[0] == 2


def test_another_models_copy_keeps_the_files_until_it_goes_itself(layout: Layout) -> None:
    client = tracking.connect(layout)
    folder = model_of(layout, 3).parent
    before = contents(folder)
    client.copy_model_version(f"models:/{MODEL}/3", "serving")
    assert "its files stay: serving version 1 needs them" in collect(layout)[0]
    assert numbers(layout) == [2, 1]
    assert contents(folder) == before
    assert collect(layout) == ["nothing to remove"]  # the upload stays with its files
    client.delete_model_version("serving", "1")
    assert "no version came of it" in collect(layout)[0]
    assert not folder.exists()


def test_of_two_that_nothing_needs_the_last_takes_the_files_along(layout: Layout) -> None:
    client = tracking.connect(layout)
    folder = model_of(layout, 3).parent
    size = artifacts.size(layout, folder.as_uri())
    client.copy_model_version(f"models:/{MODEL}/3", MODEL)
    said = collect(layout)
    assert len(said) == 3
    assert said[-1].split()[:2] == garbage.shown(size).split()  # counted once
    assert numbers(layout) == [2, 1]
    assert not folder.exists()
    assert collect(layout) == ["nothing to remove"]


SOURCES = (
    "{uri}",
    "{uri}/",
    "{uri}/metadata",
    "{uri}/./",
    "file:{path}",
    "file://localhost{path}",
    "{path}",
    "{link}",
    "{above}",
    "models:/{model}/3",
    "models:/{upload}",
    "runs:/{run}/{model}",
)


def test_every_way_to_name_a_folder_counts(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow itself looks for uploads in the store that the environment names.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{layout.state / 'mlflow.db'}")
    client = tracking.connect(layout)
    version = client.get_model_version(MODEL, "3")
    folder = model_of(layout, 3).parent
    (tmp_path / "link").symlink_to(folder)
    (upload,) = [part for part in folder.parts if part.startswith("m-")]
    quoted = folder.as_uri().removeprefix("file://")
    refs = References(layout, client)

    def needed_by() -> list[str]:
        refs.refresh()
        return [str(other) for other in refs.others(refs[MODEL, "3"]) if other.key[0]]

    for number, source in enumerate(SOURCES):
        written = source.format(
            uri=folder.as_uri(),
            path=quoted,
            link=tmp_path / "link",
            above=folder.parent.as_uri(),
            model=MODEL,
            upload=upload,
            run=version.run_id,
        )
        name = f"other-{number}"
        client.create_registered_model(name)
        client.create_model_version(name, written)
        assert needed_by() == [f"{name} version 1"], written
        client.delete_registered_model(name)
    assert needed_by() == []
    # The version goes while another names its upload, which then stays as well.
    client.create_registered_model("other")
    client.create_model_version("other", f"{folder.as_uri()}/")
    before = contents(folder)
    collect(layout)
    assert (numbers(layout), contents(folder)) == ([2, 1], before)
    assert collect(layout) == ["nothing to remove"]


@pytest.mark.parametrize("where", ["outside", "root", "run"])
def test_a_version_that_names_other_files_takes_none_along(
    layout: Layout, tmp_path: Path, where: str
) -> None:
    client = tracking.connect(layout)
    precious = tmp_path / "precious" / "models" / f"m-{'0' * 32}" / "artifacts"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("years")
    run = client.get_run(client.get_model_version(MODEL, "3").run_id)
    source = {
        "outside": precious.as_uri(),
        "root": (layout.state / "artifacts").as_uri(),
        "run": run.info.artifact_uri,
    }[where]
    tags = {registry.SHA256: "ab" * 32, registry.COMPLETE: "true"}
    client.create_model_version(MODEL, source, tags=tags)
    collect(layout)
    assert numbers(layout) == [2, 1]
    assert (precious / "thesis.txt").read_text() == "years"
    assert client.list_artifacts(run.info.run_id)
    assert version_files.champion_file(layout, MODEL)[0] == 2
    with pytest.raises(UserError, match="left alone"):
        artifacts.remove(layout, source)


def test_who_comes_between_looking_and_removing_keeps_the_files(
    layout: Layout,
) -> None:
    client = tracking.connect(layout)
    folder = model_of(layout, 3).parent
    before = contents(folder)
    said: list[str] = []

    def report(line: str) -> None:
        said.append(line)
        if "to remove in all" in line:
            client.copy_model_version(f"models:/{MODEL}/3", "serving")

    garbage.collect(layout, MODEL, keep=0, dry=False, report=report)
    assert "stay" not in said[0]
    assert numbers(layout) == [2, 1]
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("one", "two", "share"),
    [
        ("file:///a/b", "/a/b/", True),
        ("file:///a/b", "/a/bc", False),
        ("s3://bucket/a", "s3a://bucket/a/b/", True),
        ("s3://bucket/a", "s3://bucket/ab", False),
        ("mlflow-artifacts:/1/models", "mlflow-artifacts://host:5000/1/models/m", True),
        (
            "mlflow-artifacts:/1/models",
            "http://host/api/2.0/mlflow-artifacts/artifacts/1/models",
            True,
        ),
        ("mlflow-artifacts:/1", "mlflow-artifacts:/2", False),
    ],
)
def test_places_are_compared_by_where_they_lead(one: str, two: str, share: bool) -> None:
    first, second = (
        Reference(("m", name), {artifacts.canonical(where): where}, frozenset())
        for name, where in (("1", one), ("2", two))
    )
    assert first.shares(second) is second.shares(first) is share
