"""The files by which DVC sees a change of code: its dependencies are fixed names in the checkout.

Each stage depends on `data/code/STAGE.json`, which holds one hash over the sources of the package
that the stage is made of, wherever they are installed, and one over the user's own code, if it
runs any. The files are noted whenever a command opens DVC, and by each stage. DVC called by hand
compares what was noted last: `python -m pipelines.systems.dvc.stage_code` notes them before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, sha256_json, write_json
from pipelines.core.fingerprints import OWN_CODE, STAGE_SOURCES, package_hash
from pipelines.core.own_code import own_hash
from pipelines.core.paths import Layout

FOLDER = "data/code"


def note_code(root: Path) -> None:
    """Write the hashes of each stage's code where they are not there already.

    Code that cannot be read is noted by its message: the stage then runs, and says so.

    Args:
        root: The checkout, perhaps of an older commit.
    """
    settings = _settings(root)
    named = {name for sources in STAGE_SOURCES.values() for name in sources}
    parts = {name: package_hash(root, (name,)) for name in named}  # each once: most are shared
    for stage, sources in STAGE_SOURCES.items():
        value = {"package": sha256_json([[name, parts[name]] for name in sources])}
        for key in OWN_CODE.get(stage, ()):
            section, _, name = key.partition(".")
            if noted := _noted(settings, section, name, root):
                value[key] = noted
        _write(root / FOLDER / f"{stage}.json", value)


def _settings(root: Path) -> Any:
    try:
        return YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        return None  # whoever reads the parameters says what is wrong with them


def _noted(settings: Any, section: str, name: str, root: Path) -> str:
    """Return the hash of the own code that a setting names, or what is wrong; empty without any."""
    try:
        value = str(settings[section][name])
    except (KeyError, TypeError):
        return ""
    try:
        return own_hash(value, root, f"{section}.{name}")
    except UserError as error:
        return str(error)


def _write(path: Path, value: dict[str, str]) -> None:
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = None
    if known != value:  # an unchanged file keeps its time stamp
        write_json(path, value)


if __name__ == "__main__":
    note_code(Layout.find().root)
