"""A progress bar on stderr, shown only on a terminal and only for long work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextmanager
def bar(
    description: str, total: int | None, *, least: int = 0, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs, if stderr is a terminal and `total` exceeds `least`.

    Args:
        description: What is being done.
        total: Number of steps; None if unknown.
        least: No bar for up to this many steps.
        unit: `images` or `bytes`.

    Yields:
        A function that advances the bar by a number of steps.
    """
    console = Console(stderr=True)
    shown = console.is_terminal and (total is None or total > least)
    done = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(description, total=total)
        yield lambda steps: progress.advance(task, steps)
