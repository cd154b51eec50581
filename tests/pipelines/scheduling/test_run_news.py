"""What a worker prints of runs: each beginning and each end once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pipelines.scheduling.past_runs import NextRun, PastRun
from pipelines.scheduling.run_news import RunNews, when

START = datetime(2030, 1, 1, 3, tzinfo=UTC)
NOW = START + timedelta(seconds=130)
RUN = PastRun("1", "warm-otter", "retrain", 1, START, None, "running", "")
NIGHTLY = NextRun("retrain", START + timedelta(days=1), "0 3 * * * UTC")


def said(lines: object) -> list[str]:
    return [line[21:] for line in lines]  # type: ignore[attr-defined]


def test_a_run_is_told_when_it_begins_and_when_it_ends_with_what_came_of_it() -> None:
    news = RunNews(START - timedelta(hours=1))
    (first,) = said(news.lines([], [NIGHTLY], NOW))
    assert first.startswith("retrain  next run 2030-01-02 ")
    assert said(news.lines([RUN], [NIGHTLY], NOW)) == ["retrain  warm-otter  begun"]
    assert said(news.lines([RUN], [NIGHTLY], NOW)) == []
    done = replace(RUN, seconds=126.4, outcome="completed", came_of="v3 champion")
    ended, following = said(news.lines([done], [NIGHTLY], NOW))
    assert ended == "retrain  warm-otter  completed after 126 s: v3 champion"
    assert following == first
    assert said(news.lines([done], [NIGHTLY], NOW)) == []


def test_what_ended_before_is_not_told_and_a_second_attempt_is() -> None:
    news = RunNews(START + timedelta(hours=1))
    old = replace(RUN, seconds=5.0, outcome="failed")
    assert said(news.lines([old], [], NOW)) == []
    second = replace(RUN, attempt=2)
    assert said(news.lines([second], [], NOW)) == ["retrain  warm-otter  begun (attempt 2)"]


def test_a_short_run_is_told_whole_and_the_earlier_one_first() -> None:
    news = RunNews(START - timedelta(hours=1))
    done = replace(RUN, seconds=1.0, outcome="nothing new")
    later = replace(RUN, run_id="2", name="cold-crow", began=START + timedelta(minutes=1))
    assert said(news.lines([later, done], [], NOW)) == [
        "retrain  warm-otter  begun",
        "retrain  warm-otter  nothing new after 1 s",
        "retrain  cold-crow  begun",
    ]


def test_what_came_of_a_run_is_one_line_without_control_characters() -> None:
    news = RunNews(START - timedelta(hours=1))
    done = replace(RUN, seconds=1.0, outcome="failed", came_of="a\x1b[2J\nb")
    assert said(news.lines([done], [], NOW))[1].endswith(r"failed after 1 s: a\x1b[2J\nb")


def test_a_schedule_that_is_paused_or_removed_is_said() -> None:
    news = RunNews(START)
    paused = NextRun("retrain", None, "0 3 * * * UTC, paused")
    assert when(paused) == "no next run: 0 3 * * * UTC, paused"
    said(news.lines([], [NIGHTLY], NOW))
    assert said(news.lines([], [paused], NOW)) == [f"retrain  {when(paused)}"]
    assert said(news.lines([], [], NOW)) == ["retrain  is scheduled no more"]
