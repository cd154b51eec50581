"""The files by which DVC sees a change of the user's own code: its dependencies are fixed names.

Which files own code is made of depends on its imports. A stage that runs own code depends on a
folder of its own in `data/code`, and a file in it holds one hash for each setting that names own
code; without own code there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.core.own_code import own_hash

FILE = "data/code/train/own.json"
"""What the stage train depends on."""
SOURCE_FILE = "data/code/prepare/own.json"
"""What the stage prepare depends on."""
_NOTED = {
    SOURCE_FILE: ("data.source",),
    FILE: ("train.network", "train.augment_by", "task.name"),
}
_KEPT = ".gitkeep"


def note_network_code(root: Path) -> None:
    """Write the hashes of the code that the parameters name, if they are not there already.

    Code that cannot be read is noted by its message: the stage then runs, and says so.

    Args:
        root: The checkout, perhaps of an older commit.
    """
    try:
        params = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        params = None  # whoever reads the parameters says what is wrong with them
    for name, keys in _NOTED.items():
        _note(root / name, {key: noted for key in keys if (noted := _hash(params, key, root))})


def _hash(params: Any, key: str, root: Path) -> str:
    section, _, setting = key.partition(".")
    try:
        value = str(params[section][setting])
    except (KeyError, TypeError):
        return ""
    try:
        return own_hash(value, root, key)
    except UserError as error:
        return str(error)


def _note(path: Path, value: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / _KEPT).touch()  # a dependency must be there, also in an older checkout
    if not value:
        path.unlink(missing_ok=True)
        return
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = None
    if known != value:
        write_json(path, value)
