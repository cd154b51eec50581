"""A training after drift, by the scheduled flow's own work, if there are new labels to learn from.

Prefect is imported here: import this module once its server is known (`prefect_api`).
"""

from __future__ import annotations

from pipelines.core.config import Params
from pipelines.core.paths import Layout
from pipelines.pipeline.main_job import JobResult, came_of
from pipelines.scheduling.flow import SAME_DATA, Call, NothingNew, Skipped, announce, only_one, work

NEW_LABELS = (
    f"{SAME_DATA}: new labels are needed; label some of these requests and add them "
    "(`prong data add`, or to data.path), and the next look trains on them"
)


def retrain(layout: Layout, params: Params, call: Call, data_hash: str) -> str:
    """Train, verify and promote, if the labelled data are others than the champion's.

    Args:
        layout: The checkout; its commit and its parameters are what is run.
        params: Its parameters.
        call: For whom; one of a deployment works at a time.
        data_hash: Of the data that the champion was made from; empty if it is unknown.

    Returns:
        What came of it, in one line.

    Raises:
        UserError: If a parameter, the data or an outside system is at fault.
        Failed: If a stage crashed.
    """
    with only_one(layout, call.name) as mine:
        if not mine:
            return "another run of this deployment is training"
        outcome = work(layout, params, call.name, unlike=data_hash)
    if isinstance(outcome, Skipped):
        return NEW_LABELS
    if isinstance(outcome, NothingNew):
        return f"version {outcome.version} has been trained on the newest labels already"
    return _told(params, call, outcome)


def _told(params: Params, call: Call, outcome: JobResult) -> str:
    announce(params, call, outcome)
    return f"trained on new labels: {came_of(outcome)}"
