"""The pipeline from Python: what the commands do, with typed results.

    from pipelines.api import open_project

    project = open_project("digits")
    done = project.run({"train.epochs": 3})
    print(done.version, done.champion, done.reason)
    print(project.predict(["image.png"])[0].label)

Every function raises `UserError` for what its caller can mend, `Failed` for a child process that
crashed, and `Unavailable` if an outside system does not answer (`pipelines.core.errors`). Opening a
project sets environment variables that its systems read when they are imported; a process works
with one project.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.core import params_file
from pipelines.core.config import Params
from pipelines.core.environment import set_up
from pipelines.core.errors import Failed, Unavailable, UserError
from pipelines.core.paths import Layout

if TYPE_CHECKING:  # seconds of imports, which only who calls the function spends
    from datetime import datetime

    from pipelines.monitoring.look import Look
    from pipelines.pipeline.report import Summary
    from pipelines.registry.history import Entry
    from pipelines.registry.version_files import ReleasedVersion
    from pipelines.registry.versions import Version
    from pipelines.release.decision import Decision
    from pipelines.release.health import Standing
    from pipelines.release.promote import Rollback
    from pipelines.serving.batch.score import ScoredInputs
    from pipelines.serving.predict import Prediction
    from pipelines.systems.dvc.reproduce import StageResult

__all__ = ["Failed", "Project", "Unavailable", "UserError", "open_project"]

_opened: list[Path] = []


@dataclass(frozen=True)
class Project:
    """A checkout or project, opened.

    Attributes:
        layout: Its paths.
    """

    layout: Layout

    @property
    def params(self) -> Params:
        """Its parameters, as `params.yaml` has them now.

        Raises:
            UserError: If one is wrong.
        """
        return params_file.load(self.layout.params)

    def run(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        force: Sequence[str] = (),
        said: Callable[[str], None] | None = None,
    ) -> Summary:
        """Run the main job: prepare … promote; what is up to date is not run again.

        Args:
            settings: Parameter, such as `train.epochs`, → value; `params.yaml` is edited.
            force: Stages to run even if nothing changed.
            said: Called with each line of progress; None: nothing is said.

        Returns:
            What it came to: version, champion, reason, findings of the gates, stages, seconds.

        Raises:
            Failed: Also if the champion cannot be served afterwards.
        """
        from pipelines.pipeline.run import run_job

        assignments = [f"{key}={_yaml(value)}" for key, value in (settings or {}).items()]
        done = run_job(self.layout, assignments, force, _Lines(said or (lambda _: None)))
        wrong = [problem for problem in done.problems if not problem.serves]
        if wrong:
            raise Failed(f"{done.summary.model}: the champion cannot be served: {wrong[0]}")
        return done.summary

    def champion(self, model: str | None = None) -> ReleasedVersion:
        """Return what is live, after its signed statement and its bytes were checked.

        Args:
            model: The registered model's name; None: that of the parameters.

        Returns:
            Version, path of the ONNX file, statement, and what is wrong with the registry.
        """
        from pipelines.registry.version_files import champion

        return champion(self.layout, self._name(model))

    def predict(
        self,
        files: Sequence[str | os.PathLike[str]],
        *,
        model: str | None = None,
        provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto",
        top: int = 3,
    ) -> list[Prediction]:
        """Answer from the champion's ONNX file.

        Args:
            files: Image files, or tables.
            model: The registered model's name; None: that of the parameters.
            provider: Of ONNX Runtime.
            top: Classes to name for each example.
        """
        from pipelines.serving.predict import predict
        from pipelines.systems.onnx.runtime import OnnxModel

        loaded = OnnxModel.load(self.champion(model).path, provider, asked="provider")
        paths = [Path(file) for file in files]
        return predict(loaded, paths, top=top, checkout=self.layout.root)

    def score(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        model: str | None = None,
        provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto",
        overwrite: bool = False,
    ) -> ScoredInputs:
        """Write the champion's answers for many files into one Parquet file.

        Args:
            source: A folder, an archive of images, or a table.
            out: The file; a run that was ended is gone on with.
            model: The registered model's name; None: that of the parameters.
            provider: Of ONNX Runtime.
            overwrite: Whether a file of that name is replaced.

        Returns:
            How many inputs there are, how many have no answer, and where those are listed.
        """
        from pipelines.serving.batch.score import score
        from pipelines.systems.onnx.runtime import OnnxModel

        found = self.champion(model)
        return score(
            OnnxModel.load(found.path, provider, asked="provider", spinning=False),
            Path(source),
            Path(out),
            name=self._name(model),
            version=found.version,
            checkout=self.layout.root,
            overwrite=overwrite,
        )

    def versions(self, model: str | None = None) -> list[Version]:
        """Return all versions, newest first, at least one."""
        from pipelines.registry.versions import list_versions

        return list_versions(self.layout, self._name(model))

    def history(self, model: str | None = None) -> tuple[Entry, ...]:
        """Return what was live when, why and by whom, oldest first.

        Raises:
            Failed: If the history was tampered with.
        """
        from pipelines.release.transaction import repaired_state

        found = repaired_state(self.layout, self._name(model)).history
        if found.damage:
            raise Failed(f"the history was tampered with: {'; '.join(found.damage)}")
        return found.entries

    def standing(self, model: str | None = None) -> Standing:
        """Return what is live, since when and why, and all that is wrong."""
        from pipelines.release.health import standing

        return standing(self.layout, self._name(model))

    def monitor(
        self,
        *,
        since: datetime | None = None,
        rate: float = 0.01,
        minimum: int = 100,
        retrain: bool = False,
        model: str | None = None,
    ) -> Look:
        """Look for drift in the request log; write the report, and send an alert on drift.

        Args:
            since: Look back to this time; None: since the last look.
            rate: False alarms per look on unchanged inputs, above 0, at most 0.5.
            minimum: Examples that a decision needs, 20 to 10,000.
            retrain: Whether drift starts a training, if labelled data has changed.
            model: The registered model's name; None: that of the parameters.

        Returns:
            What was decided for each version, and why; `drift` holds those that drifted.

        Raises:
            Failed: If a training crashed.
        """
        from pipelines.monitoring.by_hand import look_by_hand
        from pipelines.monitoring.look import Settings

        settings, name = Settings(rate, minimum, since), self._name(model)
        return look_by_hand(self.layout, self.params, name, settings, retrain=retrain).look

    def promote(self, version: int | None = None, model: str | None = None) -> Decision:
        """Hold a version to the gates and make it champion if all of them pass.

        Args:
            version: Its number; None: the challenger.
            model: The registered model's name; None: that of the parameters.
        """
        from dataclasses import replace

        from pipelines.release.promote import promote

        params = self.params
        if model is not None:
            params = replace(params, registry=replace(params.registry, model=model))
        return promote(self.layout, params, version, asked=True)

    def rollback(
        self, to: int | None = None, *, reason: str = "", model: str | None = None
    ) -> Rollback:
        """Make an earlier champion live again.

        Args:
            to: Its number; None: the one before.
            reason: Why, for the history.
            model: The registered model's name; None: that of the parameters.
        """
        from pipelines.release.promote import rollback

        target = None if to is None else str(to)
        return rollback(self.layout, self._name(model), target, reason)

    def _name(self, model: str | None) -> str:
        return model if model is not None else self.params.model_name


class _Lines:
    """Tells how a run goes on, as lines."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def changed(self, line: str) -> None:
        self._tell(f"params.yaml  {line}")

    def said(self, line: str) -> None:
        self._tell(line)

    def stage(self, done: StageResult) -> None:
        self._tell(f"{done.stage}  {done.outcome}  {done.seconds:.1f} s")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_project(path: str | os.PathLike[str] = ".") -> Project:
    """Open the checkout or project that contains a path.

    Raises:
        UserError: If there is none, its state directory belongs to another user, or this process
            has opened another project.
    """
    layout = Layout.find(Path(path))
    if _opened and _opened[0] != layout.root:
        raise UserError(
            f"{layout.root}: this process works with {_opened[0]}; open another project in another "
            "process"
        )
    set_up(layout)
    _opened[:] = [layout.root]
    return Project(layout)
