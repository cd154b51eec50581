from __future__ import annotations

from collections.abc import Callable

import pytest
from finished_checkout import FinishedCheckout
from stored_versions import forget, stored

from pipelines.cli.versions_table import show_versions
from pipelines.core.errors import Unavailable, UserError
from pipelines.core.files import sha256_file
from pipelines.core.paths import Layout
from pipelines.registry import version_files
from pipelines.registry import versions as registry
from pipelines.release import promote as promotion
from pipelines.release import register as release
from pipelines.release import transaction
from pipelines.systems import mlflow as tracking

MODEL = "prong-digits"
Make = Callable[..., FinishedCheckout]


def test_without_a_model_it_is_said_how_to_get_one(layout: Layout, checkout: Make) -> None:
    with pytest.raises(UserError, match=r"no version of 'prong-digits'.*nothing yet.*prong run"):
        registry.list_versions(layout, MODEL)
    made = checkout()
    release.register(made.layout, made.params, None)
    with pytest.raises(UserError, match=r"no version of 'other'.*registered: prong-digits"):
        version_files.champion_file(layout, "other")
    with pytest.raises(UserError, match=r"no version is champion.*prong models"):
        version_files.champion_file(layout, MODEL)


def test_the_champions_file_is_downloaded_once_and_checked_always(checkout: Make) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)
    promotion.promote(made.layout, made.params, 1)
    forget(made.layout)
    number, path = version_files.champion_file(made.layout, MODEL)
    assert number == 1
    assert path.read_bytes() == made.layout.onnx.read_bytes()
    # The store is not asked for the file again …
    kept = stored(made.layout, 1)
    away = kept.rename(kept.with_name("away"))
    assert version_files.champion_file(made.layout, MODEL) == (1, path)
    # … unless what lies here was changed.
    away.rename(kept)
    path.write_bytes(b"changed")
    assert version_files.champion_file(made.layout, MODEL) == (1, path)
    assert sha256_file(path) == sha256_file(made.layout.onnx)
    # An exchanged file in the store leaves nothing behind.
    path.unlink()
    kept.write_bytes(b"exchanged")
    with pytest.raises(UserError, match="damaged or was exchanged"):
        version_files.champion_file(made.layout, MODEL)
    assert not path.exists()


def test_versions_come_newest_first_with_aliases_metrics_and_lineage(
    checkout: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made = checkout()
    release.register(made.layout, made.params, "flow")
    promotion.promote(made.layout, made.params, 1)
    checkout(noise=1.0)
    release.register(made.layout, made.params, "flow")
    rows = registry.list_versions(made.layout, MODEL)
    assert [(row.number, row.aliases) for row in rows] == [(2, ("challenger",)), (1, ("champion",))]
    said = rows[1].as_json()
    assert said["gates"]["champion"]["verdict"] == "pass"
    assert isinstance(said["metrics"]["gate_images"], int)
    assert said["lineage"]["onnx_sha256"] == said["onnx_sha256"]
    show_versions(MODEL, rows)
    shown = capsys.readouterr().out
    assert "champion" in shown
    assert f"{said['metrics']['test_error']:.2f} %" in shown
    assert said["lineage"]["data_hash"][:10] in shown


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-06", 1e-6),
        ("12", 12),
        ("nan", "nan"),
        ("inf", "inf"),
        ("1" * 64, "1" * 64),
        ("", ""),
        ("pass", "pass"),
    ],
)
def test_figures_become_numbers_and_hashes_do_not(text: str, value: object) -> None:
    assert registry.number(text) == value


def test_more_versions_than_one_page_are_all_found(layout: Layout) -> None:
    client = tracking.connect(layout)
    client.create_registered_model(MODEL)
    for _ in range(103):
        client.create_model_version(MODEL, str(layout.root))
    found = registry.versions(client, MODEL)
    assert [version.number for version in found] == list(range(103, 0, -1))


def test_whether_one_version_is_complete_is_not_asked_of_all(
    checkout: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkout()
    release.register(made.layout, made.params, None)

    def lists_all(*_: object, **__: object) -> None:
        raise AssertionError("all versions were listed")

    with transaction.transaction(made.layout, MODEL) as held:
        monkeypatch.setattr(registry, "versions", lists_all)
        assert [held.is_complete(number) for number in (1, 2, None)] == [True, False, False]


def test_a_file_that_is_absent_is_found_before_anyone_waits_for_the_lease(
    checkout: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = checkout()
    made.layout.onnx.unlink()

    def waits(*_: object) -> None:
        raise AssertionError("the lease was taken")

    monkeypatch.setattr(transaction, "transaction", waits)
    with pytest.raises(UserError, match=r"model\.onnx: absent; the stage export makes it"):
        release.register(made.layout, made.params, None)


def test_a_server_that_is_away_is_named_with_the_setting(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match=r"refused.*MLFLOW_TRACKING_URI") as raised:
        version_files.champion_file(layout, MODEL)
    assert "secret" not in str(raised.value)
