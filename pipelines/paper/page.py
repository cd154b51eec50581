"""`docs/paper.md`, written from reports: `python -m pipelines.paper.page [FOLDER …]`.

Each FOLDER is that of an experiment (`paper/NAME-SCALE`); without any, all of the checkout's are
taken. Their figures are kept in `docs/paper/NAME-SCALE.json`, those of another number of examples
than the scale's in `NAME-SCALE-EXAMPLES.json`, and the page is made of all that lie there. No
number in it is written by hand.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json, write_text
from pipelines.core.paths import Layout
from pipelines.paper.experiment import SCALES
from pipelines.paper.experiments import EXPERIMENTS
from pipelines.paper.paper_report import JSON

_HEAD = """# The paper's experiments

`prong paper NAME --scale small|full` runs an experiment of Desjardins et al. 2015, "Natural Neural
Networks", again: it reads the images, searches the settings of every method with equal budgets,
trains each with several seeds, and writes `paper/NAME-SCALE/report/report.html` with the figure's
axes. `--scale small` takes minutes on two cores, on real images: digits that come with the package,
for `cifar10` a part of CIFAR-10 (downloaded, or in `data.mirror`), for `imagenet` a sample in
`data.mirror`. `--scale full` has the paper's size, but for `imagenet`, as is said there. A second
run does only what is missing, and so does one after a kill. `--only METHOD`, `--without ROW`,
`--trials`, `--seeds` and `--examples` (that a training sees) make it smaller; ROW is a key below
`paper/NAME-SCALE/trained`. Every trial and every training is a run in MLflow (`prong ui`), in the
experiment `paper-NAME-SCALE`.

The paper's curves and its supplement are not to be had: only numbers that its text states are
compared. This page is written by `python -m pipelines.paper.page` from the reports' figures, which
lie in `docs/paper/`.
"""


def collect(folders: Sequence[Path], kept: Path) -> None:
    """Take the figures and pictures of finished experiments.

    Args:
        folders: Of experiments.
        kept: Where they are kept.

    Raises:
        UserError: If one has no report.
    """
    for folder in folders:
        place = folder / "report"
        try:
            found = read_json(place / JSON)
            name = _stem(found)
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{folder}: holds no report; allowed: the folder of an experiment that `prong "
                "paper` has brought to its end"
            ) from None
        write_json(kept / f"{name}.json", found)
        for picture in found["pictures"]:
            shutil.copyfile(place / picture["file"], kept / f"{name}-{picture['file']}")


def text(kept: Path) -> str:
    """Return the page, from all figures that are kept."""
    parts = [_HEAD]
    for name, experiment in EXPERIMENTS.items():
        parts.append(f"## `{name}`: {experiment.figure}\n\n{experiment.question}\n")
        there = {scale: _of_scale(kept, f"{name}-{scale}") for scale in SCALES}
        for path in (path for paths in there.values() for path in paths):
            parts.append("\n".join(_section(read_json(path), path.stem)))
        missing = [scale for scale, paths in there.items() if not paths]
        if missing:
            parts.append(f"No result is kept of the scale {' and '.join(missing)}.\n")
        if len(missing) < len(there):
            stated = [f"- {one.what}: {one.value} ({one.place})" for one in experiment.stated]
            chosen = [f"- {one}" for one in experiment.chosen]
            if stated:
                parts.append("The paper states:\n\n" + "\n".join(stated) + "\n")
            parts.append("Where its text is silent, we chose:\n\n" + "\n".join(chosen) + "\n")
    return "\n".join(parts)


def _stem(found: Mapping[str, Any]) -> str:
    """Return the name of a report's files."""
    name, scale, examples = found["name"], found["scale"], found["examples"]
    plain = examples == EXPERIMENTS[name].scales[scale].examples
    return f"{name}-{scale}" if plain else f"{name}-{scale}-{examples}"


def _of_scale(kept: Path, stem: str) -> list[Path]:
    """Return the kept figures of a scale, fewest examples first; the scale's own number last."""
    others = [path for path in kept.glob(f"{stem}-*.json") if path.stem[len(stem) + 1 :].isdigit()]
    others.sort(key=lambda path: int(path.stem[len(stem) + 1 :]))
    return [*others, *filter(Path.is_file, [kept / f"{stem}.json"])]


def _section(found: Mapping[str, Any], stem: str) -> Iterator[str]:
    other = stem.endswith(f"-{found['examples']}")
    more = f", {found['examples']:,} examples a training" if other else ""
    yield f"### {found['scale'].capitalize()} scale{more}\n"
    yield f"    {found['command']}\n"
    seen, images = found["examples"], found["images"]
    yield (
        f"{images['train']:,} images of {images['source']}, {images['size']} × {images['size']} "
        f"pixels; {seen:,} examples a training; {_seeds(found['seeds'])}"
        f"{_trials(found['trials'])}; {found['training_seconds']:g} s of updates in the trainings "
        "shown.\n"
    )
    for machine in found["machines"]:
        yield "; ".join(f"{key} {value}" for key, value in machine.items()) + ".\n"
    for picture in found["pictures"]:
        yield f"![{picture['title']}](paper/{stem}-{picture['file']})\n"
    if found["targets"]:
        words = {True: "reached", False: "**missed**", None: "not measured"}
        rows = [
            (t["what"], t["limit"], f"{t['found']} {t['why']}".strip() or "–", words[t["reached"]])
            for t in found["targets"]
        ]
        yield from _table(("to reach", "limit", "here", "verdict"), rows)
    for table in found["tables"]:
        yield f"{table['title']}:\n"
        yield from _table(table["columns"], table["rows"])
        if table["note"]:
            yield f"{table['note']}\n"


def _seeds(count: int) -> str:
    return f"seeds 0 to {count - 1}" if count > 1 else "seed 0"


def _trials(trials: Mapping[str, int]) -> str:
    counts = sorted(set(trials.values()) - {0})
    return f"; {' or '.join(map(str, counts))} trials in each search" if counts else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |"
    yield ""


def main(words: Sequence[str]) -> int:
    """Write the page of the checkout that this process stands in."""
    root = Layout.find().root
    folders = [Path(word) for word in words] or sorted(
        path.parents[1] for path in root.glob(f"paper/*/report/{JSON}")
    )
    try:
        collect(folders, root / "docs/paper")
        write_text(root / "docs/paper.md", text(root / "docs/paper"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(root / "docs/paper.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
