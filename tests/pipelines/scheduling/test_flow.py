"""The entry flow's parts: what is told of a run, and that one of a deployment works at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from webhook import Receiver

from pipelines.core import params_file
from pipelines.core.config import AlertsConfig, Params
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.pipeline.main_job import JobResult
from pipelines.release.promote import Decision
from pipelines.release.register import Registration
from pipelines.scheduling.flow import Call, announce, only_one, reporting
from pipelines.scheduling.rules import Due
from pipelines.systems import mlflow as tracking

CALL = Call("retrain", "", Due("run-1", datetime(2030, 1, 1, tzinfo=UTC), "running"))


def told(receiver: Receiver) -> Params:
    """Return parameters whose alerts go to a receiver."""
    params = params_file.load(Path(__file__).parents[3] / "params.yaml")
    return replace(params, alerts=AlertsConfig(receiver.url))


@pytest.mark.parametrize("error", [UserError("no data"), Failed("stage x"), ValueError("a bug")])
def test_what_ends_a_run_is_told_and_still_ends_it(receiver: Receiver, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), reporting(told(receiver), CALL):
        raise error
    (got,) = receiver.got
    assert (got["event"], got["flow_run"]) == ("failed", "run-1")
    assert str(error) in str(got["reason"])


def test_a_run_that_ends_well_tells_nothing_by_itself(receiver: Receiver) -> None:
    with reporting(told(receiver), CALL):
        pass
    assert receiver.got == []


@pytest.mark.parametrize(
    ("promoted", "champion", "event"),
    [(True, 7, ["promoted"]), (False, 3, ["blocked"]), (False, None, ["blocked"]), (False, 7, [])],
)
def test_what_the_gates_said_is_told(
    receiver: Receiver, promoted: bool, champion: int | None, event: list[str]
) -> None:
    decision = Decision(7, promoted, champion, 3, "parity: 1e-2 > 1e-4")
    registration = Registration("digits", 7, True, "run", "0" * 64)
    announce(told(receiver), CALL, JobResult((), registration, decision, "flow"))
    assert [alert["event"] for alert in receiver.got] == event
    assert all(alert["version"] == 7 for alert in receiver.got)


def test_two_runs_of_one_deployment_do_not_work_at_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    tracking.connect(layout)  # makes the store in which the lease lies
    with only_one(layout, "nightly") as first:
        assert first
        with only_one(layout, "nightly", patience=0) as second:
            assert not second
        with only_one(layout, "weekly", patience=0) as other:
            assert other
    with only_one(layout, "nightly", patience=0) as third:
        assert third
