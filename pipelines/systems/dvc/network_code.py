"""The file by which DVC sees a change of the user's own code: its dependencies are fixed names.

Which files own code is made of depends on its imports. The stage train depends on the folder
`data/code`, and a file in it holds one hash over all of them; without own code there is none.
"""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.core.errors import UserError
from pipelines.core.files import read_json, write_json
from pipelines.core.own_code import own_hash

FILE = "data/code/network.json"
_KEYS = (("train", "network"), ("task", "name"))


def note_network_code(root: Path) -> None:
    """Write the hash of the code that `train.network` names, if it is not there already.

    Code that cannot be read is noted by its message: the stage train then runs, and says so.

    Args:
        root: The checkout, perhaps of an older commit.
    """
    try:
        params = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        params = None  # whoever reads the parameters says what is wrong with them
    value = {}
    for section, name in _KEYS:
        key = f"{section}.{name}"
        try:
            noted = own_hash(str(params[section][name]), root, key)
        except (KeyError, TypeError):
            continue
        except UserError as error:
            noted = str(error)
        if noted:
            value[key] = noted
    path = root / FILE
    if not value:
        path.unlink(missing_ok=True)
        return
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = None
    if known != value:
        write_json(path, value)
