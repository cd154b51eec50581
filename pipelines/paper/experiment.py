"""What an experiment of the paper is: its question, its trainings, and how they are judged.

A `StudyPlan` is one search over settings; a `Point` is one line or dot of the figure. A point takes
its settings from the best trial of a study, or has them fixed. All points of one study share that
study's budget of trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pipelines.core.errors import UserError
from pipelines.paper import paper_images
from pipelines.paper.paper_images import ImagePlace
from pipelines.paper.sheet import Sheet
from pipelines.systems.optuna.dimensions import Dimension, Value

Values = Mapping[str, Value]
ScaleName = Literal["small", "full"]
SCALES: tuple[ScaleName, ...] = ("small", "full")


@dataclass(frozen=True)
class Stated:
    """A number that the paper states in its text.

    Attributes:
        what: It is a number of.
        value: As the paper writes it.
        place: Where it stands.
    """

    what: str
    value: str
    place: str


@dataclass(frozen=True)
class StudyPlan:
    """One search over the settings of a method.

    Attributes:
        method: Key of `pipelines.paper.compared_methods.METHODS`.
        space: What is searched.
        fixed: Settings that all trials share.
        first: Settings to begin with, for what is searched.
    """

    method: str
    space: Mapping[str, Dimension]
    fixed: Values = field(default_factory=dict)
    first: tuple[Values, ...] = ()


@dataclass(frozen=True)
class Point:
    """Trainings with one setting, one for each seed.

    Attributes:
        label: What the report calls them.
        method: Key of `pipelines.paper.compared_methods.METHODS`.
        study: The study whose best trial gives the settings; empty: they are `values`.
        where: What that trial must have: the best of those is taken.
        values: Settings of a point without a study; what one with a study has besides.
    """

    label: str
    method: str
    study: str = ""
    where: Values = field(default_factory=dict)
    values: Values = field(default_factory=dict)


def both(name: str, label: str) -> dict[str, Point]:
    """Return the best trial of a study without batch normalisation, and the best with it.

    Args:
        name: Of the method and of its study.
        label: What the report calls the method.
    """
    return {
        name: Point(label, name, name, {"normalised": False}),
        f"bn-{name}": Point(f"BN + {label}", name, name, {"normalised": True}),
    }


OURS = {
    "prong": Point("PRONG", "prong", "prong", {"normalised": False}),
    "prong-bn": Point("PRONG⁺", "prong", "prong", {"normalised": True}),
}
"""The same of PRONG, which with batch normalisation has a name of its own."""


@dataclass(frozen=True)
class Scale:
    """The size of an experiment.

    Attributes:
        data: Key of `pipelines.paper.paper_images.READERS`, or what the experiment's own `prepare`
            takes.
        size: Edge of the images, pixels.
        measured: Training images, and test images, that figures are measured on.
        examples: That a training sees, repeated ones counted: its budget.
        marks: How often in a training figures are measured, its end included.
        trials: Of each study.
        seeds: Of each point.
        studies: By name.
        points: By key, in the order of the tables.
        options: What else the experiment needs.
        limit: Training images, and test images, that are used at most; 0: all.
    """

    data: str
    size: int
    measured: int
    examples: int
    marks: int
    trials: int
    seeds: int
    studies: Mapping[str, StudyPlan]
    points: Mapping[str, Point]
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int = 0

    def part(self, only: tuple[str, ...], without: tuple[str, ...]) -> Scale:
        """Return the scale with some methods alone, and without some rows of the report.

        Args:
            only: Methods; all of them if none is named.
            without: Keys of points. A study that no other point needs goes with them.

        Raises:
            UserError: If a name is unknown, or nothing is left.
        """
        methods = sorted({point.method for point in self.points.values()})
        _check_names("--only", only, methods)
        _check_names("--without", without, sorted(self.points))
        chosen = set(only or methods)
        points = {
            key: point
            for key, point in self.points.items()
            if point.method in chosen and key not in without
        }
        if not points:
            raise UserError(f"--without {without[-1]!r}: nothing is left to train")
        needed = {point.study for point in points.values()}
        studies = {key: study for key, study in self.studies.items() if key in needed}
        return replace(self, points=points, studies=studies)


def _check_names(option: str, given: tuple[str, ...], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{option} {name!r}: allowed: {', '.join(known)}")


@dataclass(frozen=True)
class TrainingTask:
    """One training that is to be made.

    Attributes:
        method: Key of `pipelines.paper.compared_methods.METHODS`.
        values: Its settings.
        seed: Of the weights and the order of the images.
        final: Whether it is a training of a point; else it is a trial of a study.
        checkpoint: Where a long training keeps its state; None: it does not.
        say: Is told of each mark as it is made.
        files: Where it may leave files; None for a trial.
    """

    method: str
    values: Values
    seed: int
    final: bool
    checkpoint: Path | None = None
    say: Callable[[CurveMark], None] = lambda mark: None
    files: Path | None = None


@dataclass(frozen=True)
class CurveMark:
    """Figures of a training at one moment.

    Attributes:
        update: Updates made.
        examples: SplitImages seen.
        seconds: Wall-clock time of the updates so far, without the loading of images and without
            measuring; what initialises a whitened network counts.
        processor: Processor time of the same, seconds.
        figures: What was measured, by name.
    """

    update: int
    examples: int
    seconds: float
    processor: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """What a training came to.

    Attributes:
        marks: In order; the first is of update 0.
        refresh: Seconds of the reparametrisations.
        reason: Why it ended early; empty if it did not.
        before: Figures of update 0 before a whitened network was initialised.
        figures: What belongs to no moment.
    """

    marks: tuple[CurveMark, ...]
    refresh: float = 0.0
    reason: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def last(self) -> CurveMark:
        """The last mark."""
        return self.marks[-1]

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return a figure at each update at which it was measured."""
        return [(m.update, m.figures[name]) for m in self.marks if name in m.figures]


@dataclass(frozen=True)
class Trained:
    """The trainings of one point.

    Attributes:
        key: Of the point.
        point: What was trained.
        values: The settings that they had; empty if none was found.
        curves: By seed.
        missing: Why there are none; empty if there are.
        files: By seed, the folder of what a training left.
    """

    key: str
    point: Point
    values: Values
    curves: Mapping[int, Curve]
    missing: str = ""
    files: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All that an experiment came to.

    Attributes:
        scale: What was asked for.
        trained: By key of the point.
        trials: By name of the study, how many trials it has.
        card: What is known of the images.
    """

    scale: Scale
    trained: Mapping[str, Trained]
    trials: Mapping[str, int]
    card: Mapping[str, Any]

    @property
    def there(self) -> dict[str, Trained]:
        """The points that were trained to their end with at least one seed."""
        return {k: t for k, t in self.trained.items() if t.curves and not t.missing}


def _prepare(scale: Scale, place: ImagePlace, folder: Path) -> None:
    paper_images.prepare(scale.data, scale.size, place, folder, scale.limit)


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        name: On the command line.
        figure: Of the paper.
        question: That it answers.
        stated: The numbers that the paper states of it.
        chosen: Where the text is silent: what we chose.
        scales: By name.
        network: Makes the network of a scale, with batch normalisation or without.
        train: Makes one training.
        score: Of a trial; smaller is better, not finite is a failure.
        report: Makes the report's content.
        sources: Modules of this package, and paths of the checkout, by which only this
            experiment's trainings can change.
        prepare: Writes the images of a scale, from their place into a folder, with a `card.json`.
        load: Makes of that folder what `train` takes.
    """

    name: str
    figure: str
    question: str
    stated: tuple[Stated, ...]
    chosen: tuple[str, ...]
    scales: Mapping[ScaleName, Scale]
    network: Callable[[Scale, bool], nn.Module]
    train: Callable[[Scale, Any, TrainingTask], Curve]
    score: Callable[[Scale, Curve], float]
    report: Callable[[Results], Sheet]
    sources: tuple[str, ...] = ()
    prepare: Callable[[Scale, ImagePlace, Path], None] = _prepare
    load: Callable[[Path], Any] = paper_images.load
