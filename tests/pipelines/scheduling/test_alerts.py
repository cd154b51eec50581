"""Alerts against a real receiver on loopback: what arrives, what does not, what is never said."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhook import Receiver

from pipelines.core.config import AlertsConfig
from pipelines.scheduling import alerts
from pipelines.scheduling.alerts import Alert

ALERT = Alert("blocked", "retrain", "run-1", "2030-01-01T00:00:00+00:00", "worse", "digits", 3)
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=24)


def test_an_alert_arrives_as_json(receiver: Receiver) -> None:
    assert alerts.send(AlertsConfig(receiver.url), ALERT, pause=0)
    (got,) = receiver.got
    assert receiver.paths == ["/hook/s3cret?token=t0ken"]
    assert got["event"] == "blocked"
    assert got["deployment"] == "retrain"
    assert got["version"] == 3
    assert got["text"] == "retrain: blocked digits version 3: worse"


def test_the_address_may_come_from_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRONG_HOOK", receiver.url)
    assert alerts.send(AlertsConfig("$PRONG_HOOK"), ALERT, pause=0)
    monkeypatch.delenv("PRONG_HOOK")
    assert not alerts.send(AlertsConfig("$PRONG_HOOK"), ALERT, pause=0)
    assert len(receiver.got) == 1


def test_without_an_address_nothing_is_sent() -> None:
    assert not alerts.send(AlertsConfig(""), ALERT, pause=0)


@pytest.mark.parametrize(
    ("answers", "taken", "tries"),
    [
        ([500, 200], True, 2),
        ([503], False, alerts.TRIES),
        ([429, 200], True, 2),
        ([404], False, 1),
        ([302], False, 1),
    ],
)
def test_tries_are_bounded_and_redirects_not_followed(
    receiver: Receiver, answers: list[int], taken: bool, tries: int
) -> None:
    receiver.answers[:] = answers
    assert alerts.send(AlertsConfig(receiver.url), ALERT, pause=0) is taken
    assert len(receiver.got) == tries
    assert "/elsewhere" not in receiver.paths


def test_a_receiver_that_is_away_fails_nothing_and_its_secrets_are_not_logged(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers[:] = [404]
    closed = "http://user:pa55word@127.0.0.1:1/hook/s3cret?token=t0ken"
    with caplog.at_level(logging.DEBUG, logger="pipelines"):
        for url in (closed, receiver.url, "http://[broken/s3cret"):
            assert not alerts.send(AlertsConfig(url), ALERT, pause=0)
    said = "\n".join(record.getMessage() for record in caplog.records if "pipelines" in record.name)
    assert "127.0.0.1" in said
    for secret in ("pa55word", "s3cret", "t0ken", "user"):
        assert secret not in said


@given(WORD, WORD, WORD, st.text(max_size=40))
def test_no_secret_of_an_address_is_in_the_payload(
    password: str, path: str, token: str, around: str
) -> None:
    url = f"postgresql://someone:{password}@db.example.org:5432/{path}?key={token}"
    sent = Alert("failed", "d", "r", "t", f"{around} {url} {around}").payload()
    said = json.dumps({key: sent[key] for key in ("reason", "text")})
    for secret in (password, path, token):
        assert secret in around or secret not in said


@given(st.text(max_size=3000), st.text(max_size=60))
def test_any_reason_is_sent_in_bounds(reason: str, url: str) -> None:
    sent = Alert("failed", "d", "r", "t", reason).payload()
    assert len(str(sent["reason"])) <= 2000
    json.dumps(sent)
    alerts.shown(url)
