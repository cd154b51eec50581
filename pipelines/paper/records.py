"""Trials and trainings as the JSON files that the stages leave for each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.paper.experiment import Curve, CurveMark
from pipelines.systems.optuna.dimensions import Value

T = TypeVar("T")
_Text = Annotated[str, Field(max_length=2000)]


@dataclass(frozen=True)
class JudgedTrial:
    """A trial of a study.

    Attributes:
        values: Its settings, those that all share included.
        score: What it was judged by; None if it was not trained to its end.
        reason: Why not.
    """

    values: dict[str, Value]
    score: float | None
    reason: _Text = ""


@dataclass(frozen=True)
class StudyResult:
    """What the stage `search` leaves of a study.

    Attributes:
        trials: All of them, in order.
        missing: Why there is none; empty if there are.
    """

    trials: list[JudgedTrial]
    missing: _Text = ""

    def best(self, where: Mapping[str, Value]) -> JudgedTrial | None:
        """Return the best trial that has these settings."""
        found = [
            one
            for one in self.trials
            if one.score is not None and all(one.values.get(k) == v for k, v in where.items())
        ]
        return min(found, key=lambda one: one.score or 0.0) if found else None


@dataclass(frozen=True)
class _Mark:
    update: int
    examples: int
    seconds: float
    processor: float
    figures: dict[str, float | None]


@dataclass(frozen=True)
class TrainingRecord:
    """What the stage `train` leaves of a training.

    Attributes:
        values: Its settings; empty if there are none.
        marks: See `Curve`; a figure that is not finite is None.
        refresh: See `Curve`.
        reason: See `Curve`.
        before: See `Curve`.
        figures: See `Curve`.
        missing: Why nothing was trained; empty if something was.
        environment: Of the training: machine, versions, device, threads.
    """

    values: dict[str, Value]
    marks: list[_Mark]
    refresh: float
    reason: _Text
    before: dict[str, float | None]
    figures: dict[str, float | None]
    missing: _Text
    environment: dict[str, str]

    @property
    def curve(self) -> Curve:
        """The training."""
        marks = tuple(
            CurveMark(m.update, m.examples, m.seconds, m.processor, _finite(m.figures))
            for m in self.marks
        )
        before, figures = _finite(self.before), _finite(self.figures)
        return Curve(marks, self.refresh, self.reason, before, figures)


def _finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {k: float("nan") if v is None else v for k, v in figures.items()}


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {k: v if abs(v) < float("inf") else None for k, v in figures.items()}  # NaN: None


def write_record(
    path: Path,
    values: Mapping[str, Value],
    curve: Curve | None,
    environment: Mapping[str, str],
    missing: str = "",
) -> None:
    """Write what came of a training.

    Args:
        path: The file.
        values: Its settings.
        curve: What came of it; None if nothing was trained.
        environment: Of the training.
        missing: Why nothing was trained.
    """
    made = curve or Curve(())
    marks = [asdict(mark) | {"figures": _plain(mark.figures)} for mark in made.marks]
    content = asdict(made) | {
        "marks": marks,
        "before": _plain(made.before),
        "figures": _plain(made.figures),
        "values": dict(values),
        "missing": missing,
        "environment": dict(environment),
    }
    write_json(path, content)


def read_record(path: Path) -> TrainingRecord:
    """Return what `write_record` wrote.

    Raises:
        UserError: If the file is absent or another.
    """
    return _read(path, TypeAdapter(TrainingRecord).validate_python)


def read_search(path: Path) -> StudyResult:
    """Return what the stage `search` wrote.

    Raises:
        UserError: If the file is absent or another.
    """
    return _read(path, TypeAdapter(StudyResult).validate_python)


def write_search(path: Path, searched: StudyResult) -> None:
    """Write what came of a study."""
    write_json(path, asdict(searched))


def _read(path: Path, parse: Callable[[Any], T]) -> T:
    try:
        return parse(read_json(path))
    except FileNotFoundError:
        raise UserError(f"{path}: is not there; the stage before writes it") from None
    except (ValueError, ValidationError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not what the stage before writes: {said}") from None
