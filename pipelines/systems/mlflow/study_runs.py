"""The runs of a search: one for the study, and one below it for each trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from pipelines.core.paths import Layout
from pipelines.systems.liveness import identity
from pipelines.systems.mlflow.address import answering
from pipelines.systems.mlflow.runs import LONGEST_TAG, TrainingRun, create_run, training_run
from pipelines.systems.mlflow.store import connect

_PARENT, _NAME = "mlflow.parentRunId", "mlflow.runName"
BEST_TAG = "prong.best"
"""Tag of a trial's run: `true` on the best one of its study."""
_PATIENCE = 10.0


class StudyRun:
    """The run of a study that is being worked on.

    Attributes:
        run_id: MLflow's id of it.
    """

    def __init__(
        self, layout: Layout, client: MlflowClient, experiment: str, run: TrainingRun
    ) -> None:
        self._layout, self._client, self._experiment, self._run = layout, client, experiment, run
        self.run_id = run.run_id

    def begin(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str]
    ) -> TrainingRun:
        """Return the new run of a trial.

        Args:
            name: Shown by MLflow.
            params: Its settings, by full name.
            tags: Besides those that name its parent and this process.

        Raises:
            Unavailable: If the store does not answer.
        """
        named = {**tags, _PARENT: self.run_id, _NAME: name, **identity()}
        with answering(self._layout):
            run_id = create_run(self._layout, self._client, self._experiment, params, named)
        return TrainingRun(self._client, run_id)

    def end(self, run: TrainingRun, status: str) -> None:
        """End the run of a trial as FINISHED, FAILED or KILLED."""
        run.end(status, _PATIENCE)

    def show_best(self, best: str | None, others: list[str]) -> None:
        """Mark the run of the best trial, and only that.

        Args:
            best: Id of its run; None if none is known.
            others: Ids of the other trials' runs.
        """
        with answering(self._layout):
            for run_id in others:
                if self._client.get_run(run_id).data.tags.get(BEST_TAG) == "true":
                    self._client.set_tag(run_id, BEST_TAG, "false")
            if best is not None:
                self._client.set_tag(best, BEST_TAG, "true")

    def log(self, metrics: Mapping[str, float], tags: Mapping[str, str], step: int) -> None:
        """Write what the study came to onto its own run."""
        self._run.log(metrics, step)
        for key, value in tags.items():
            self._run.tag(key, value[:LONGEST_TAG])

    def keep_file(self, path: Path) -> None:
        """Keep a file with the study's run, in the place of one of the same name."""
        with answering(self._layout):
            self._client.log_artifact(self.run_id, str(path))


@contextmanager
def study_run(
    layout: Layout,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    resume: str | None,
) -> Iterator[StudyRun]:
    """Open the run of a study, or the one that it had, and end it; see `training_run`.

    Args:
        layout: The checkout.
        experiment: Its name; made if absent.
        name: Shown by MLflow.
        params: What all trials share, by full name.
        resume: Id of the run to go on with.

    Raises:
        UserError: If the store cannot be used.
        Unavailable: If it does not answer.
    """
    tags = {_NAME: name, "prong.study": name}
    with training_run(
        layout, experiment=experiment, params=params, tags=tags, resume=resume
    ) as run:
        yield StudyRun(layout, connect(layout), experiment, run)
