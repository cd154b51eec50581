"""How two versions differ: what they were made from and by, what they score, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.core import tables
from pipelines.core.paths import Layout

if TYPE_CHECKING:
    from pipelines.registry.versions import Version
    from pipelines.systems.mlflow import MlflowClient

SECTIONS = ("params", "data", "metrics", "gates", "environment", "classes")
_DATA = (
    *("data_hash", "dvc_lock_sha256", "git_commit", "git_dirty", "code_hash", "params_hash"),
    "started_from",
)
_CLASSES = "evaluation/classes/"

Pair = tuple[str | float | None, str | float | None]


@dataclass(frozen=True)
class Comparison:
    """Two versions side by side.

    Attributes:
        model: The registered model's name.
        first: Number of the one.
        second: Number of the other.
        sections: Section → name → both values; None where a version has none. Errors of classes
            are in per cent of the class's test images.
    """

    model: str
    first: int
    second: int
    sections: Mapping[str, Mapping[str, Pair]]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        found = {
            section: {
                name: {"first": one, "second": other, "same": one == other}
                for name, (one, other) in pairs.items()
            }
            for section, pairs in self.sections.items()
        }
        return {"model": self.model, "first": self.first, "second": self.second, **found}


def compare(layout: Layout, model: str, first: str, second: str) -> Comparison:
    """Compare two versions of a model.

    Args:
        layout: The checkout.
        model: The registered model's name.
        first: Number or alias of the one.
        second: Number or alias of the other.

    Raises:
        UserError: If one of them does not exist.
        Unavailable: If the registry does not answer.
    """
    from pipelines.registry import versions as registry
    from pipelines.systems import mlflow as tracking

    client = tracking.connect(layout)
    with tracking.answering(layout):
        named = registry.aliases(client, model)
        numbers = [
            registry.number_of(model, named, text, asked=name)
            for name, text in (("A", first), ("B", second))
        ]
        one, other = (
            _facts(client, registry.get_version(client, model, number)) for number in numbers
        )
    sections = {
        section: {
            name: (one[section].get(name), other[section].get(name))
            for name in sorted({*one[section], *other[section]})
        }
        for section in SECTIONS
    }
    return Comparison(model, numbers[0], numbers[1], sections)


def _facts(client: MlflowClient, version: Version) -> dict[str, dict[str, str | float]]:
    """Return what is known of a version, by section."""
    from pipelines.registry import versions as registry
    from pipelines.systems import mlflow as tracking

    made = version.under(registry.LINEAGE)
    # A run may be deleted; the version stays.
    run = tracking.read_run(client, version.run_id) if version.run_id else None
    measured = {} if run is None else dict(run.metrics)
    params: dict[str, str | float] = {**version.under(registry.PARAM)}
    if not params and run is not None:  # a version older than these tags
        params = {**run.params}
    return {
        "params": params,
        "data": {key: made[key] for key in _DATA if key in made},
        "metrics": {
            **{key: float(value) for key, value in version.under(registry.METRIC).items()},
            **{k: v for k, v in measured.items() if "/" in k and not k.startswith(_CLASSES)},
        },
        "gates": {finding.gate: finding.verdict for finding in version.findings},
        "environment": {key: value for key, value in made.items() if key not in _DATA},
        "classes": {
            name.removeprefix(_CLASSES).removesuffix("/error"): value
            for name, value in measured.items()
            if name.startswith(_CLASSES) and name.endswith("/error")
        },
    }


def show(comparison: Comparison, *, everything: bool) -> None:
    """Print a comparison as tables.

    Args:
        comparison: What to show.
        everything: Whether to show what is equal too; figures and classes are always shown.
    """
    console = tables.console(120)
    first, second = f"v{comparison.first}", f"v{comparison.second}"
    console.print(tables.line(f"{comparison.model}: {first} and {second}"))
    for section, pairs in comparison.sections.items():
        shown = {
            name: pair
            for name, pair in pairs.items()
            if everything or pair[0] != pair[1] or section in ("classes", "gates")
        }
        equal = len(pairs) - len(shown)
        title = f"{section} ({equal} equal)" if equal else section
        if section == "classes":
            title = "classes (error on the test split, %)"
        rows = [
            (name, _text(one), _text(other), _difference(one, other))
            for name, (one, other) in shown.items()
        ]
        console.print(tables.table(("", first, second, "difference"), rows, title=title))


def _text(value: str | float | None) -> str:
    if value is None:
        return "–"
    return value[:60] if isinstance(value, str) else f"{value:.6g}"


def _difference(one: str | float | None, other: str | float | None) -> str:
    if isinstance(one, float) and isinstance(other, float):
        return "" if one == other else f"{other - one:+.6g}"
    return "" if one == other else "differs"
