"""`prong init`: makes a project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.core.text import shown
from pipelines.project.templates import TEMPLATES

_OFFERED = "; ".join(f"{name}: {TEMPLATES[name].summary}" for name in TEMPLATES)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Its folder; made if it is absent.")
    ] = Path(),
    template: Annotated[str, typer.Option(help=f"What for. {_OFFERED}.")] = "digits",
) -> None:
    """Make a project in a folder: settings, stages, a network to edit, and a README."""
    from pipelines.project.create import create

    done = create(folder, template)
    root = shown(done.root)
    if not done.written:
        print(f"{root}: a project made with --template {template} already; nothing was changed")
        return
    made = " and a git repository" if done.repository else ""
    print(f"{root}: {len(done.written)} files{made}, from the template {template}")
    print(f"  {'  '.join(done.written)}")
    print("go on with (README.md says more)")
    if done.root != Path.cwd():
        inside = done.root.is_relative_to(Path.cwd())
        print(f"  cd {shown(os.path.relpath(done.root) if inside else done.root)}")
    print('  git add -A && git commit -m "Start"')
    print("  prong run")
    print(f"  prong predict {TEMPLATES[template].asked}")
