"""What is printed on a terminal: tables and lines whose text is never read as markup."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.core.text import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


@dataclass(frozen=True)
class Styled:
    """A piece of text with a style.

    Attributes:
        text: What is printed, from anywhere.
        style: One of rich's styles, such as `bold red`; from this program only.
    """

    text: str
    style: str


Piece = str | Styled
"""What a cell or a part of a line is; control characters are made visible as it is printed."""


def console(width: int = 140) -> Console:
    """Return a console as wide as the terminal, or `width` wide without a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def line(*pieces: Piece) -> Text:
    """Return one line for a console, made of pieces that follow one another."""
    from rich.text import Text

    made = Text()
    for piece in pieces:
        if isinstance(piece, Styled):
            made.append(shown(piece.text), piece.style)
        else:
            made.append(shown(piece))
    return made


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Piece]],
    *,
    title: str | None = None,
    right: Collection[str] = (),
    whole: Collection[str] = (),
) -> Table:
    """Return a table of rich.

    Args:
        columns: The column headings.
        rows: Cells. Their text is not read as markup.
        title: Title above the table.
        right: Columns of numbers, which are right-aligned.
        whole: Columns whose text is not wrapped.
    """
    from rich.table import Table

    heading = None if title is None else line(title)
    made = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(
            line(name),
            overflow="fold",
            justify="right" if name in right else "left",
            no_wrap=name in whole,
        )
    for row in rows:
        made.add_row(*map(line, row))
    return made
