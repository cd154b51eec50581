"""A look that a person asks for, now and in this process."""

from __future__ import annotations

from pipelines.core.config import Params
from pipelines.core.paths import Layout
from pipelines.monitoring.held_out import ReleasedVersions
from pipelines.monitoring.look import Settings
from pipelines.monitoring.monitor import Monitored, monitor


def look_by_hand(
    layout: Layout, params: Params, model: str, settings: Settings, *, retrain: bool
) -> Monitored:
    """Look at a model's log now; a Prefect server is started only for a training.

    Raises:
        UserError: If the registry, the log's state or a training is at fault.
        Failed: If a training crashed.
    """
    versions = ReleasedVersions(layout, model)

    def train() -> str:
        from pipelines.systems.prefect.server import prefect_api

        with prefect_api(layout) as wait:
            from pipelines.monitoring.scheduled_look import by_hand

            wait()
            return by_hand(layout, params, versions.champions_data())

    ours = retrain and model == params.model_name
    return monitor(
        layout, params.alerts, model, settings, versions, retrain=train if ours else None
    )
