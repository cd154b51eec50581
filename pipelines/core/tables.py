"""Tables for a terminal, all in the same style."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console(width: int = 140) -> Console:
    """Return a console as wide as the terminal, or `width` wide without a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else width)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Collection[str] = (),
    whole: Collection[str] = (),
) -> Table:
    """Return a table of rich.

    Args:
        columns: The column headings.
        rows: Cells, in rich's markup.
        title: Title above the table.
        right: Columns of numbers, which are right-aligned.
        whole: Columns whose text is not wrapped.
    """
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(
            name,
            overflow="fold",
            justify="right" if name in right else "left",
            no_wrap=name in whole,
        )
    for row in rows:
        made.add_row(*row)
    return made
