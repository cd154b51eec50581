"""The stages of an experiment, and the folder in which DVC runs them.

The folder is a DVC repository of its own. `settings.json` holds what the stages depend on beside
files: each stage only on its own part, so that another number of trials of one study, or one more
seed, leaves the rest as it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json, write_text
from pipelines.core.fingerprints import package_hash
from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import Experiment, Point, Scale, StudyPlan
from pipelines.paper.experiments import check_scale, experiment
from pipelines.systems.optuna.dimensions import Value

SETTINGS = "settings.json"
KEPT = "kept"
"""Folder of studies and checkpoints, which DVC does not touch."""
_CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
    autostage = false
"""
_PYTHON = {"python": '"\\${PRONG_PYTHON:-python}" -m pipelines.paper.paper_stages'}
"""The interpreter that runs prong."""
_TRAINING = (
    "pipelines/data",
    "pipelines/paper/experiment.py",
    "pipelines/paper/cifar_images.py",
    "pipelines/paper/paper_images.py",
    "pipelines/paper/one_training.py",
    "pipelines/paper/compared_methods.py",
    "pipelines/paper/networks.py",
    "pipelines/paper/newton_muon.py",
    "pipelines/paper/peer_optimizers.py",
    "pipelines/paper/records.py",
    "pipelines/paper/paper_stages.py",
    "pipelines/paper/state_file.py",
    "pipelines/paper/training_problem.py",
    "pipelines/paper/tuning.py",
    "pipelines/systems/optuna",
    "pipelines/training/learning_rate.py",
    "prong",
)
"""The sources by which every training can change."""
Kind = Literal["data", "search", "train", "report"]


@dataclass(frozen=True)
class AskedExperiment:
    """What the command asks for.

    Attributes:
        name: Of the experiment.
        scale: Its scale.
        trials: Of each study; None: as the scale has them.
        seeds: Of each point; None: as the scale has them.
        examples: That a training sees; None: as the scale has them.
        only: Methods; empty: all.
        without: Points that are left out.
        checkout: Whose MLflow store and downloads are used, and whose `data.mirror`.
        mirror: That setting.
    """

    name: str
    scale: str
    trials: int | None
    seeds: int | None
    examples: int | None
    only: tuple[str, ...]
    without: tuple[str, ...]
    checkout: str
    mirror: str

    def experiment(self) -> tuple[Experiment, Scale]:
        """Return the experiment and its scale, as it is asked for.

        Raises:
            UserError: If a name is unknown.
        """
        found = experiment(self.name)
        check_scale(self.scale)
        scale = found.scales[self.scale].part(self.only, self.without)  # type: ignore[index]
        return found, replace(
            scale,
            trials=self.trials or scale.trials,
            seeds=self.seeds or scale.seeds,
            examples=self.examples or scale.examples,
        )

    @property
    def runs(self) -> str:
        """The name of the experiment in MLflow."""
        return f"paper-{self.name}-{self.scale}"


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        kind: What it does.
        key: The study or the point.
    """

    kind: Kind
    key: str = ""

    @property
    def stage(self) -> str:
        """Its name in `dvc.yaml`."""
        return f"{self.kind}@{self.key}" if self.key else self.kind


def steps(scale: Scale) -> Iterator[PlannedStage]:
    """Yield the stages of a scale, in order."""
    yield PlannedStage("data")
    for key in scale.studies:
        yield PlannedStage("search", key)
    for key in scale.points:
        yield PlannedStage("train", key)
    yield PlannedStage("report")


def lay_out(folder: Path, asked: AskedExperiment) -> tuple[PlannedStage, ...]:
    """Make the folder of an experiment, or bring it up to date.

    Args:
        folder: Of the experiment.
        asked: What is to be done.

    Returns:
        The stages, in order.

    Raises:
        UserError: If a name is unknown.
    """
    found, scale = asked.experiment()
    _write(folder / ".dvc/config", _CONFIG)
    _write(folder / ".gitignore", "*\n")
    root = Path(asked.checkout)
    own = tuple(name if "/" in name else f"pipelines/paper/{name}.py" for name in found.sources)
    codes = {"training": (*_TRAINING, *own), "report": ("pipelines/paper", "pipelines/pipeline")}
    for name, sources in codes.items():
        _write_json(folder / f"code/{name}.json", {"package": package_hash(root, sources)})
    _write_json(folder / SETTINGS, _settings(asked, scale))
    text = io.StringIO()
    YAML(typ="safe").dump({"vars": [_PYTHON], "stages": _stages(scale)}, text)
    _write(folder / "dvc.yaml", text.getvalue())
    return tuple(steps(scale))


def asked_in(folder: Path) -> AskedExperiment:
    """Return what a folder was made for.

    Raises:
        UserError: If it is not the folder of an experiment.
    """
    try:
        return TypeAdapter(AskedExperiment).validate_python(read_json(folder / SETTINGS)["asked"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not the folder of an experiment: {said}") from None


def record_of(folder: Path, key: str, seed: int) -> Path:
    """Return the folder of a training."""
    return folder / f"trained/{key}/{seed}"


def search_of(folder: Path, study: str) -> Path:
    """Return the file of a study."""
    return folder / f"search/{study}.json"


def identity(scale: Scale) -> dict[str, Any]:
    """Return what all trainings of a scale share, as plain values."""
    kept = ("data", "size", "measured", "examples", "marks", "options", "limit")
    return {name: getattr(scale, name) for name in kept}


def _settings(asked: AskedExperiment, scale: Scale) -> dict[str, Any]:
    return {
        "asked": _plain(asked),
        "report": _plain(replace(asked, checkout="", mirror="")),
        "data": {"source": scale.data, "size": scale.size, "limit": scale.limit},
        "shared": identity(scale),
        "seeds": scale.seeds,
        "studies": {k: _study(v) | {"trials": scale.trials} for k, v in scale.studies.items()},
        "points": {key: _point(point) for key, point in scale.points.items()},
    }


def _plain(asked: AskedExperiment) -> dict[str, Any]:
    lists = {"only": list(asked.only), "without": list(asked.without)}  # as JSON has them
    return asdict(asked) | lists


def _study(study: StudyPlan) -> dict[str, Any]:
    return {
        "method": study.method,
        "missing": METHODS[study.method].missing,
        "space": {key: str(kind) for key, kind in study.space.items()},
        "fixed": _sorted(study.fixed),
        "first": [_sorted(values) for values in study.first],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "method": point.method,
        "missing": METHODS[point.method].missing,
        "where": _sorted(point.where),
        "values": _sorted(point.values),
    }


def _sorted(values: Any) -> dict[str, Value]:
    return dict(sorted(values.items()))


def _stages(scale: Scale) -> dict[str, Any]:
    """Return the stages as `dvc.yaml` has them."""
    trainings = {
        key: f"search/{point.study}.json" if point.study else "data/card.json"
        for key, point in scale.points.items()
    }
    stages: dict[str, Any] = {
        "data": {
            "cmd": "${python} data",
            "deps": ["code/training.json"],
            "params": [{SETTINGS: ["data"]}],
            "outs": ["data"],
        }
    }
    if scale.studies:
        stages["search"] = {
            "foreach": list(scale.studies),
            "do": {
                "cmd": "${python} search ${item}",
                "deps": ["code/training.json", "data"],
                "params": [{SETTINGS: ["shared", "studies.${item}"]}],
                "outs": ["search/${item}.json"],
            },
        }
    stages["train"] = {
        "foreach": trainings,
        "do": {
            "cmd": "${python} train ${key}",
            "deps": ["code/training.json", "data", "${item}"],
            "params": [{SETTINGS: ["shared", "seeds", "points.${key}"]}],
            "outs": ["trained/${key}"],
        },
    }
    found = [f"search/{key}.json" for key in scale.studies]
    stages["report"] = {
        "cmd": "${python} report",
        "deps": ["code/report.json", "data/card.json", *found]
        + [f"trained/{name}" for name in trainings],
        "params": [{SETTINGS: ["report"]}],
        "outs": ["report"],
    }
    return stages


def _write(path: Path, text: str) -> None:
    """Write a file that is not so already: an unchanged one keeps its time stamp."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _write_json(path: Path, value: Any) -> None:
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = None
    if known != value:
        write_json(path, value)
