"""Evidence that costs something is gathered when first asked for, and once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class gathered_once(Generic[T]):  # reads as a decorator
    """A property gathered once; what failed once is not tried again, and fails the same way."""

    def __init__(self, gather: Callable[[Any], T]) -> None:
        self._gather = gather
        self.__doc__ = gather.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: Any, owner: type | None = None) -> T:
        had: dict[str, T] = holder.__dict__.setdefault("_had", {})
        failed: dict[str, Exception] = holder.__dict__.setdefault("_failed", {})
        if self._name in failed:
            raise failed[self._name]
        if self._name not in had:
            try:
                had[self._name] = self._gather(holder)
            except Exception as error:
                failed[self._name] = error
                raise
        return had[self._name]
