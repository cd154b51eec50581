"""The entry flow's parts on a real Prefect server: which errors make an attempt again."""

from __future__ import annotations

import pytest
from prefect import task
from prefect.cache_policies import NO_CACHE

from pipelines.errors import Failed, Unavailable, UserError
from pipelines.layout import Layout
from pipelines.scheduling.flow import _may_pass


@pytest.mark.parametrize(
    ("error", "calls"),
    [(Unavailable("silent"), 3), (UserError("wrong"), 1), (Failed("crashed"), 1)],
)
def test_prefect_makes_again_only_what_can_pass(
    served: Layout, error: Exception, calls: int
) -> None:
    made = []

    @task(
        retries=2,
        retry_delay_seconds=[0, 0],
        retry_condition_fn=_may_pass,
        cache_policy=NO_CACHE,
    )
    def attempt() -> None:
        made.append(1)
        raise error

    with pytest.raises(type(error), match=str(error)):
        attempt()
    assert len(made) == calls
