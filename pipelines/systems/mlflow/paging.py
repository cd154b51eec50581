"""Lists that MLflow gives page by page, read to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from mlflow.store.entities.paged_list import PagedList

T = TypeVar("T")


def every_page(page: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Yield what is on all pages of a list.

    Args:
        page: Returns the page that a token names; None names the first.
    """
    token: str | None = None
    while True:
        found = page(token)
        yield from found
        token = found.token
        if not token:
            return
