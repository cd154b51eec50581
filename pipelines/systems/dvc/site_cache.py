"""DVC's site cache: what it remembers of files and indices, in pickles that it loads again.

DVC means it for all users of a machine and makes its folders writable for everybody. To load a
pickle is to run what it says, so here it belongs to one user alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.core.private import others_may_write, private_folder

SETTING = "DVC_SITE_CACHE_DIR"
_INSIDE = "repo"  # DVC makes it, and what is absent above it, with mode 0777


def private_site_cache(state: Path) -> None:
    """Make DVC's site cache, or look after it, before DVC reads it.

    The checkout's own is made anew if others could write to it: it can be had again from the files.

    Args:
        state: The checkout's state directory; the cache is in it unless the user set another.

    Raises:
        UserError: If others may write to the user's own, or the state directory is not private.
    """
    own = state / "dvc"
    folder = Path(os.environ.setdefault(SETTING, str(own)))
    places = (folder, folder / _INSIDE)
    if folder.resolve().is_relative_to(state.resolve()):
        private_folder(state)
    if any(others_may_write(place) for place in places):
        if folder.resolve() != own.resolve():
            raise UserError(
                f"{SETTING} = {str(folder)!r}: other users may write there, and DVC runs what its "
                "files say; allowed: a folder that only you can write to. Remove it (DVC makes it "
                "again), or unset the variable"
            )
        _remove(own)
    if all(place.is_dir() for place in places):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for place in places:
        place.mkdir(mode=0o700, exist_ok=True)


def _remove(folder: Path) -> None:
    # Another user's folder in it could not be emptied, but all of it can be moved away.
    with suppress(FileNotFoundError):  # another process has done it
        aside = tempfile.mkdtemp(prefix=".dvc.", dir=folder.parent)
        folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
