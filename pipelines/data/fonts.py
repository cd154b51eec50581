"""The font of the data card's pictures: one that has the letters of most alphabets."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

_FILE = "mpl-data/fonts/ttf/DejaVuSans.ttf"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans, which comes with matplotlib; without it Pillow's own, which has few.

    Args:
        size: Of the letters, pixels.
    """
    found = find_spec("matplotlib")  # not imported: that takes longer than the picture
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / _FILE
        if path.is_file():
            return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(size=size)
