"""Times and names: what is wrong is said in one line that names what is allowed."""

from __future__ import annotations

import asyncio
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prefect.server.schemas.schedules import CronSchedule as ServerSchedule

from pipelines.core.errors import UserError
from pipelines.scheduling.cron import check_name, schedule

FIELD = st.text("0123456789*/-, LWRHh#?", max_size=6)


@example("0 0 30 2 *")
@example("@daily")
@example("\x00 * * * *")
@example("* * * * * *")
@given(st.one_of(st.text(max_size=30), st.lists(FIELD, min_size=5, max_size=5).map(" ".join)))
def test_any_text_either_fires_on_the_server_or_is_refused(text: str) -> None:
    try:
        found = schedule(text, "UTC")
    except UserError as error:
        said = str(error)
    else:
        said = "--cron allowed"
        times = asyncio.run(ServerSchedule(cron=found.cron, timezone="UTC").get_dates(2))
        assert times
    assert "--cron" in said
    assert "allowed" in said
    assert "\n" not in said


@pytest.mark.parametrize("cron", ["* * * * *", "*/15 * * * *", "0 3 * * mon-fri", "0 0 29 2 *"])
def test_usual_expressions_are_taken(cron: str) -> None:
    found = schedule(f"  {cron} ", "Europe/Paris")
    assert found.cron == cron
    assert found.timezone == "Europe/Paris"


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "61 * * * *", "0 25 * * *", "@daily", "R * * * *", "0 0 30 2 *"]
)
def test_what_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(UserError, match="--cron"):
        schedule(cron, "UTC")


def test_an_unknown_time_zone_is_refused_with_a_near_one() -> None:
    with pytest.raises(UserError, match=r"--timezone 'Europe/Pariss'.*did you mean Europe/Paris"):
        schedule("* * * * *", "Europe/Pariss")


@given(st.text(string.printable, max_size=120))
def test_a_name_is_safe_in_paths_and_addresses_or_refused(name: str) -> None:
    try:
        check_name("--name", name)
    except UserError:
        return
    assert name not in ("", ".", "..")
    assert not set(name) - set(string.ascii_letters + string.digits + "._-")
