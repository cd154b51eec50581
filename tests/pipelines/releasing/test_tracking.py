"""The MLflow run of a training, and the database that is made for it."""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from pipelines.core.files import write_text
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.systems import liveness
from pipelines.systems import mlflow as tracking
from pipelines.systems.mlflow.leases import leased

URI = "MLFLOW_TRACKING_URI"


def child(code: str, layout: Layout, **kwargs: object) -> subprocess.Popen[str]:
    """Start Python with `layout` and `tracking` at hand."""
    head = (
        "import sys, time\nfrom pathlib import Path\n"
        "from pipelines.systems import mlflow as tracking\n"
        "from pipelines.core.paths import Layout\nlayout = Layout(Path(sys.argv[1]))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(layout.root)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,  # type: ignore[call-overload]
    )


TRAIN = (
    "with tracking.training_run(layout, experiment='e', params={}, tags={}) as run:\n"
    "    run.log({'loss': 1.0}, step=1)\n    print(run.run_id, flush=True)\n    time.sleep(300)\n"
)


@pytest.mark.slow
def test_two_first_starts_make_one_whole_and_quiet_database(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "ein Ordner %41 é")
    layout.root.mkdir()
    code = "print(tracking.connect(layout).search_registered_models())"
    starts = [child(code, layout) for _ in range(2)]
    ends = [start.communicate(timeout=120) for start in starts]
    assert ends == [("[]\n", "")] * 2
    with tracking.training_run(layout, experiment="e", params={}, tags={}) as run:
        pass
    client = tracking.connect(layout)
    client.log_text(run.run_id, "here", "note.txt")
    (note,) = layout.state.rglob("note.txt")
    assert note.is_relative_to(layout.state / "artifacts")


def test_an_existing_database_is_not_migrated_again(layout: Layout) -> None:
    database = layout.state / "mlflow.db"
    before = database.read_bytes()
    tracking.connect(layout)
    assert database.read_bytes() == before


def test_a_run_carries_params_tags_and_every_point_in_order(layout: Layout) -> None:
    params = {f"train.p{i}": i for i in range(205)}
    with tracking.training_run(
        layout, experiment="e", params=params, tags={"note": "x" * 9000}
    ) as run:
        for step in range(1, 2101):
            run.log({"loss": 1 / step, "whitening_error/features.0": math.nan}, step)
        run.log({"a(b)ü": math.inf}, 0)
        run.tag(tracking.WEIGHTS_TAG, "ab" * 32)
    found = tracking.connect(layout).get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {k: str(v) for k, v in params.items()}
    assert found.data.tags["note"] == "x" * 5000
    assert math.isnan(found.data.metrics["whitening_error/features.0"])
    assert found.data.metrics["a_b__"] > 1e300
    history = tracking.connect(layout).get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1 / s) for s in range(1, 2101)]
    assert tracking.find_run(layout, "e", "ab" * 32) == run.run_id
    assert tracking.find_run(layout, "e", "cd" * 32) is None
    assert tracking.find_run(layout, "unknown", "ab" * 32) is None


def test_points_are_seen_while_training(layout: Layout) -> None:
    client = tracking.connect(layout)
    with tracking.training_run(layout, experiment="e", params={}, tags={}) as run:
        run.log({"loss": 3.0}, step=1)
        wait_until(lambda: client.get_run(run.run_id).data.metrics, 90)
        assert client.get_run(run.run_id).data.metrics == {"loss": 3.0}
        assert client.get_run(run.run_id).info.status == "RUNNING"


def test_a_finished_run_is_found_before_a_killed_one(layout: Layout) -> None:
    ids = []
    for error in (None, KeyboardInterrupt):
        try:
            with tracking.training_run(layout, experiment="e", params={}, tags={}) as run:
                run.tag(tracking.WEIGHTS_TAG, "ab")
                ids.append(run.run_id)
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
    assert tracking.find_run(layout, "e", "ab") == ids[0]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_how_a_run_ends(layout: Layout, error: type[BaseException], status: str) -> None:
    with (
        pytest.raises(error),
        tracking.training_run(layout, experiment="e", params={}, tags={}) as run,
    ):
        run.log({"loss": 1.0}, step=1)
        raise error
    found = tracking.connect(layout).get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"loss": 1.0}


def test_sigterm_ends_a_run_as_killed(layout: Layout) -> None:
    process = child(TRAIN, layout)
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.terminate()
    _, said = process.communicate(timeout=90)
    assert (process.returncode, said) == (143, "")
    run = tracking.connect(layout).get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss": 1.0})
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_only_a_run_whose_process_is_gone_is_closed(layout: Layout) -> None:
    dead, alive = child(TRAIN, layout), child(TRAIN, layout)
    try:
        assert dead.stdout is not None
        assert alive.stdout is not None
        gone, here = dead.stdout.readline().strip(), alive.stdout.readline().strip()
        dead.kill()  # not waited for: a zombie is gone as well
        client = tracking.connect(layout)
        foreign = client.create_run(tracking.experiment_id(layout, client, "e")).info.run_id
        closed: list[str] = []
        wait_until(lambda: closed.extend(tracking.close_dead_runs(layout)) or closed, 90)
        assert closed == [gone]
        status = {r: client.get_run(r).info.status for r in (gone, here, foreign)}
        assert status == {gone: "KILLED", here: "RUNNING", foreign: "RUNNING"}
        assert tracking.close_dead_runs(layout) == []
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()


def test_a_process_that_cannot_be_seen_counts_by_its_heartbeat(layout: Layout) -> None:
    client = tracking.connect(layout)
    experiment = tracking.experiment_id(layout, client, "e")
    elsewhere = {**liveness.identity(), "prong.kernel": "another-boot/pid:[1]"}
    fresh = client.create_run(experiment, tags=elsewhere).info.run_id
    old = {**elsewhere, liveness.HEARTBEAT: f"{time.time() - liveness.STALE - 60:.0f}"}
    stale = client.create_run(experiment, tags=old).info.run_id
    assert tracking.close_dead_runs(layout) == [stale]
    assert client.get_run(fresh).info.status == "RUNNING"


def test_a_reused_process_id_is_not_the_same_process(layout: Layout) -> None:
    client = tracking.connect(layout)
    tags = {**liveness.identity(), "prong.process_start": "1"}
    run = client.create_run(tracking.experiment_id(layout, client, "e"), tags=tags)
    assert tracking.close_dead_runs(layout) == [run.info.run_id]


def test_a_store_that_goes_away_costs_a_warning_and_no_point(
    layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    database = layout.state / "mlflow.db"
    away = database.with_suffix(".away")
    with tracking.training_run(layout, experiment="e", params={}, tags={}) as run:
        # What MLflow does on a folder where its file was: an error at each call.
        database.rename(away)
        database.mkdir()
        run.log({"loss": 1.0}, step=1)
        wait_until(lambda: caplog.records, 90)
        run.log({"loss": 2.0}, step=2)
        database.rmdir()
        away.rename(database)
    warnings = [r for r in caplog.records if r.name.startswith("pipelines")]
    assert len(warnings) == 1
    assert "training goes on" in warnings[0].getMessage()
    history = tracking.connect(layout).get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]


def test_a_store_that_stays_away_does_not_fail_the_training(
    layout: Layout, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    database = layout.state / "mlflow.db"
    away = database.with_suffix(".away")
    caplog.set_level(logging.WARNING)
    with tracking.training_run(layout, experiment="e", params={}, tags={}) as run:
        database.rename(away)
        database.mkdir()
        run.log({"train_loss": 1.0}, step=1)
    assert "1 points left" in caplog.records[-1].getMessage()
    database.rmdir()
    away.rename(database)
    # Registering brings what is missing, once.
    reports = tmp_path / "reports"
    write_text(reports / "history.csv", "step,train_loss,lr\n1,1.0,\n2,0.5,0.1\n")
    client = tracking.connect(layout)
    client.log_metric(run.run_id, "train_loss", 0.5, step=2)
    assert tracking.import_history(layout, run.run_id, reports) == 2
    assert tracking.import_history(layout, run.run_id, reports) == 0
    history = client.get_metric_history(run.run_id, "train_loss")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5)]
    assert client.get_run(run.run_id).info.status == "FINISHED"


@given(st.text(max_size=300))
def test_any_name_becomes_one_that_mlflow_takes(name: str) -> None:
    clean = tracking.metric_name(name)
    _validate_metric_name(clean)
    assert len(clean) <= 250
    assert tracking.metric_name(clean) == clean


@pytest.mark.parametrize("name", ["whitening_error/features.0", "loss", "a b:c-d_e"])
def test_good_names_stay_as_they_are(name: str) -> None:
    assert tracking.metric_name(name) == name


def test_a_full_disk_is_a_user_error(layout: Layout) -> None:
    size = (layout.state / "mlflow.db").stat().st_size
    code = (
        "from pipelines.core.errors import UserError\n"
        "try:\n"
        "    for _ in range(50):\n"
        "        with tracking.training_run(layout, experiment='e', tags={},\n"
        "            params={f'p{i}': 'x' * 5000 for i in range(50)}): pass\n"
        "except UserError as error:\n    print(error)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40_000, size + 40_000))

    said, _ = child(code, layout, preexec_fn=limit).communicate(timeout=120)
    assert "cannot be used" in said
    assert "MLFLOW_TRACKING_URI" in said
    assert "free space" in said


def test_one_at_a_time(layout: Layout, tmp_path: Path) -> None:
    tracking.connect(layout)
    order: list[str] = []

    def enter(name: str, pause: float) -> Callable[[], None]:
        def work() -> None:
            with leased(layout, "lock"):
                order.append(f"{name} in")
                time.sleep(pause)
                order.append(f"{name} out")

        return work

    threads = [threading.Thread(target=enter(name, 0.2)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry[-2:] for entry in order] == ["in", "ut", "in", "ut"]
