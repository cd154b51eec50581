"""Makes a project: the files of this package's own checkout, with a template's settings.

All is checked before anything is written. What is there already, equal, is left alone, so the same
command again changes nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.core import params_file
from pipelines.core.errors import UserError
from pipelines.core.files import write_text
from pipelines.project.templates import TEMPLATES, Template
from pipelines.systems import git

_FILES = Path(__file__).parent / "files"
_SHIPPED = {
    ".dvc/.gitignore": "dvc-gitignore",
    ".dvc/config": "dvc-config",
    ".dvcignore": "dvcignore",
    ".gitignore": "gitignore",
    "data.py": "data.txt",
    "dvc.yaml": "dvc-yaml",
}
"""File of a project → what it is shipped as. Those of a checkout are links to its own, by other
names: DVC takes every dvc.yaml for one that counts."""
_EMPTY = ("data/added/.gitkeep", "data/code/.gitkeep", "data/raw/.gitkeep", "data/start/.gitkeep")
_IGNORED, _README = ".gitignore", "README.md"


@dataclass(frozen=True)
class Created:
    """What `create` did.

    Attributes:
        root: The project.
        written: Its new or lengthened files, by name; empty if it was there already.
        repository: Whether a git repository was made.
    """

    root: Path
    written: tuple[str, ...]
    repository: bool


def create(folder: Path, template: str) -> Created:
    """Make a project in a new or existing folder; nothing is committed.

    A README that is there stays as it is, and lines are added to a `.gitignore`.

    Args:
        folder: The folder; made, with those above it, if it is absent.
        template: A name of `TEMPLATES`.

    Raises:
        UserError: If the template is unknown, git is absent, or files that are to be written are
            there with other content: then nothing is written.
        OSError: If the disk does not take it.
    """
    if template not in TEMPLATES:
        raise UserError(f"--template {template!r}: allowed: {', '.join(TEMPLATES)}")
    if shutil.which("git") is None:
        raise UserError("git is missing; a project needs it: apt-get install git")
    root = folder.expanduser().resolve()
    if not next(place for place in (root, *root.parents) if place.exists()).is_dir():
        raise UserError(f"{root}: it, or a folder above it, is a file")
    texts = _texts(root, template, TEMPLATES[template])
    if wrong := [said for name, text in texts.items() if (said := _in_the_way(root, name, text))]:
        raise UserError(
            f"{root}: nothing was written, because there are already other files: "
            f"{', '.join(wrong)}; move them away, or make the project in another folder"
        )
    written = tuple(name for name in texts if _content(root / name) != texts[name])
    root.mkdir(parents=True, exist_ok=True)
    new = git.ask(root, "rev-parse", "--git-dir") is None
    if new:
        git.tell(root, "init", "--quiet")
    for name in written:
        write_text(root / name, texts[name])
    return Created(root, written, new)


def _texts(root: Path, name: str, template: Template) -> dict[str, str]:
    """Return what each file of a project is to hold; those of other people as they are."""
    texts = {file: (_FILES / shipped).read_text("utf-8") for file, shipped in _SHIPPED.items()}
    texts |= dict.fromkeys(_EMPTY, "")
    texts["network.py"] = (_FILES / template.network).read_text("utf-8")
    texts["params.yaml"] = params_text(template)
    texts[_README] = (
        (_FILES / "readme.txt")
        .read_text("utf-8")
        .format(
            title=root.name or "project",
            template=name,
            summary=template.summary,
            asked=template.asked,
            notes="\n\n".join(template.notes),
        )
    )
    if (known := _content(root / _README)) is not None:
        texts[_README] = known
    if (known := _content(root / _IGNORED)) is not None:
        texts[_IGNORED] = _with_lines(known, texts[_IGNORED])
    return dict(sorted(texts.items()))


def params_text(template: Template) -> str:
    """Return a template's `params.yaml`: the shipped one with the template's settings.

    Raises:
        UserError: If the shipped one does not have these settings.
    """
    with tempfile.TemporaryDirectory(prefix="prong-init-") as scratch:
        path = Path(scratch) / "params.yaml"
        shutil.copyfile(_FILES / "params-yaml", path)
        params_file.edit(path, list(template.settings))
        return path.read_text("utf-8")


def _content(path: Path) -> str | None:
    """Return a file's text; None if there is no file."""
    return path.read_text("utf-8", errors="replace") if path.is_file() else None


def _with_lines(text: str, wanted: str) -> str:
    """Return the text of a `.gitignore` with the wanted lines that it lacks at its end."""
    known = set(text.splitlines())
    missing = [line for line in wanted.splitlines() if line not in known and line[:1] != "#"]
    if not missing:
        return text
    start = text if not text or text.endswith("\n") else f"{text}\n"
    return "\n".join([f"{start}# What prong makes", *missing, ""])


def _in_the_way(root: Path, name: str, text: str) -> str:
    """Return what keeps a file from being written, as a message names it; empty without that."""
    path = root / name
    for folder in path.relative_to(root).parents:
        if (root / folder).exists() and not (root / folder).is_dir():
            return f"{folder} (not a folder)"
    if not path.is_file():
        return f"{name} (not a file)" if path.exists() or path.is_symlink() else ""
    return name if name != _IGNORED and _content(path) != text else ""
