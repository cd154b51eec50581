"""What comes of a look: report, alert, training, and a state that loses nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from logged_requests import Opened
from released_versions import MODEL, Known, drawn, renamed, requests
from webhook import Receiver, receiver  # noqa: F401

from pipelines.core.config import AlertsConfig
from pipelines.core.errors import Failed, UserError
from pipelines.core.paths import Layout
from pipelines.monitoring import look_state as states
from pipelines.monitoring import monitor as monitoring
from pipelines.monitoring.comparison import Examples
from pipelines.monitoring.look import Settings
from pipelines.monitoring.monitor import Caller, Monitored, checked, monitor, summary
from pipelines.serving.request_log import RequestLog, log_folder
from pipelines.systems.locks import locked

Look = Callable[..., Monitored]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def log(layout: Layout, opened: Opened) -> RequestLog:
    return opened(log_folder(layout, MODEL))


@pytest.fixture
def looked(layout: Layout) -> Look:
    """Return a function that looks once; nothing is alerted unless an address is given."""

    def once(url: str = "", known: Known | None = None, **more: Any) -> Monitored:
        settings = more.pop("settings", Settings())
        return monitor(layout, AlertsConfig(url), MODEL, settings, known or Known(), **more)

    return once


def test_drift_is_told_once_a_look_with_version_and_reason(
    log: RequestLog,
    looked: Look,
    receiver: Receiver,  # noqa: F811
) -> None:
    log.append(requests(drawn(1, 300)))
    assert not looked(receiver.url).alerted
    assert receiver.got == []
    log.append(requests(drawn(2, 300, shift=1.0), 2))
    log.append(requests(drawn(3, 300, shift=1.0)))
    done = looked(receiver.url, caller=Caller("hourly", "run-1", "2026-11-02T10:00:00+00:00"))
    assert done.alerted
    (told,) = receiver.got
    assert (told["event"], told["deployment"], told["flow_run"]) == ("drift", "hourly", "run-1")
    assert (told["model"], told["version"]) == (MODEL, 3)  # the live one of two
    assert "drift score" in str(told["reason"])
    assert str(told["text"]).startswith("hourly: drift digits-cnn version 3: ")


def test_a_training_starts_on_drift_only_and_its_outcome_is_reported(
    log: RequestLog, looked: Look
) -> None:
    asked = []

    def retrain() -> str:
        asked.append(1)
        return "trained on new labels: v4 champion"

    log.append(requests(drawn(1, 300)))
    assert (looked(retrain=retrain).look.retraining, asked) == ("", [])
    log.append(requests(drawn(1, 300, shift=1.0)))
    done = looked(retrain=retrain)
    assert asked == [1]
    assert done.look.retraining in done.page.read_text()
    assert json.loads(done.data.read_text())["retraining"] == done.look.retraining
    log.append(requests(drawn(1, 300, shift=1.0)))
    assert looked().look.retraining == "not asked for"


def test_a_training_that_fails_leaves_a_look_that_is_done(
    log: RequestLog, layout: Layout, looked: Look
) -> None:
    def retrain() -> str:
        raise Failed("stage train: exit code 1")

    log.append(requests(drawn(1, 300, shift=1.0)))
    with pytest.raises(Failed, match="stage train"):
        looked(retrain=retrain)
    page = layout.reports / f"monitor-{MODEL}.html"
    assert "failed: stage train: exit code 1" in page.read_text()
    assert looked().look.versions == ()  # what was read is not read again


def test_a_look_whose_alert_was_cut_short_is_made_again(
    log: RequestLog, looked: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    log.append(requests(drawn(1, 300, shift=1.0)))
    with monkeypatch.context() as patch:
        patch.setattr(monitoring, "_alert", killed)
        with pytest.raises(KeyboardInterrupt):
            looked()
    assert looked().look.drift


def test_one_look_at_a_time(layout: Layout, looked: Look) -> None:
    folder = states.folder(layout, MODEL)
    folder.mkdir(parents=True)
    with (
        locked(folder / "lock", patience=0),
        pytest.raises(UserError, match=r"another look .* is at work"),
    ):
        looked()
    assert summary(looked().look) == "no new requests"


@pytest.mark.parametrize(
    "wrong",
    [
        Settings(rate=0.0),
        Settings(rate=0.6),
        Settings(rate=float("nan")),
        Settings(minimum=19),
        Settings(minimum=10_001),
    ],
)
def test_settings_out_of_range_are_refused(looked: Look, wrong: Settings) -> None:
    with pytest.raises(UserError, match=r"--(rate|minimum) .*allowed"):
        looked(settings=wrong)
    assert checked(Settings(0.5, 20)) == Settings(0.5, 20)


def test_the_page_needs_nothing_else_and_shows_each_version(log: RequestLog, looked: Look) -> None:
    log.append(requests(drawn(1, 300)))
    looked()
    log.append(requests(drawn(2, 300, shift=1.0)))
    log.append(requests(drawn(3, 300), 2))
    log.append(requests(drawn(4, 30), 1))
    log.append(renamed(requests(drawn(5, 2)), model="<script>alert(1)</script>"))
    done = looked()
    text = done.page.read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", text) == []
    assert "http" not in re.sub(r"xmlns(:\w+)?=\"[^\"]*\"", "", text)
    assert "<script" not in text
    for part in ("Version 3 (live)", "Version 2", "Version 1", "Kolmogorov–Smirnov", "chi-square"):
        assert part in text
    assert text.count("<svg") == 3 + 2  # one of them over the looks
    assert "30 of 100; kept for the next look" in text


def test_the_json_says_the_same(log: RequestLog, looked: Look) -> None:
    log.append(requests(drawn(1, 300, shift=1.0)))
    done = looked()
    found = json.loads(done.data.read_text())
    assert (found["drift"], found["model"], found["read"]) == (True, MODEL, 150)
    (version,) = found["versions"]
    assert version["decision"] == "drift"
    assert {test["kind"] for test in version["tests"] if test["alarms"]} >= {"score"}


def test_pages_of_other_tasks_are_written_too(log: RequestLog, looked: Look) -> None:
    held = drawn(1000, 500)
    some = requests(drawn(1, 300))
    log.append(renamed(some, answers=[], labels=[]))  # answers are images
    known = Known(held_out=Examples(scores=held.scores), threshold=40.0)
    assert looked(known=known).page.read_text().count("<svg") == 1
    log.append(renamed(some, drift=[], labels=[]))  # numbers, of a version without drift graph
    known = Known(held_out=Examples(answers=held.answers))
    assert looked(known=known).look.versions[0].decision == "no drift"
    known = Known(held_out=Examples())
    log.append(some)
    assert "no reference" in looked(known=known).page.read_text()
    lost = [replace(one, drift=[float("inf")] * 2) for one in some]
    log.append(lost)
    assert looked().look.drift


def test_a_damaged_log_ends_in_no_traceback(log: RequestLog, layout: Layout, looked: Look) -> None:
    log.append(requests(drawn(1, 300)))
    log.close()
    file = next(log_folder(layout, MODEL).glob("*.jsonl"))
    file.write_bytes(b"\x00" * 5_000_000 + b"\n" + file.read_bytes()[:-9])
    done = looked()
    assert (done.look.refused, done.look.torn) == (1, 1)
    assert "longer than" in done.page.read_text()
