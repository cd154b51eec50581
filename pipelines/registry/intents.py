"""What a command is about to do, written down before it does it, and how a model stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.core.errors import UserError
from pipelines.registry.history import History
from pipelines.registry.versions import CHAMPION, PREVIOUS

INTENT = "prong.intent"
"""Tag of the registered model."""


@dataclass(frozen=True)
class Intent:
    """What is to be once a command has come to its end.

    Attributes:
        command: Which one.
        id: Names the intent for good.
        sha256: `register`: the bytes a version is to hold.
        aliases: Otherwise: alias → version, or None where it is to be taken away; in this order.
        entry: Otherwise: the history's entry, without its place in the list.
    """

    command: Literal["register", "promote", "rollback"]
    id: str
    sha256: str = ""
    aliases: Mapping[str, int | None] | None = None
    entry: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, text: str) -> Intent:
        """Return the intent that a tag holds.

        Raises:
            UserError: If it is none; another program or a newer version wrote it.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            raise UserError(
                f"the registered model's tag {INTENT} is not an intent: {text[:200]!r}; a newer "
                "version of this program may have written it; remove the tag if not"
            ) from None


@dataclass(frozen=True)
class ModelState:
    """A registered model as it stands.

    Attributes:
        aliases: Alias → version.
        history: What was live.
        intent: What a command began, or None.
    """

    aliases: Mapping[str, int]
    history: History
    intent: Intent | None

    @property
    def agrees(self) -> bool:
        """Whether the aliases are those of the history's last entry."""
        last = self.history.last
        wanted = (None, None) if last is None else (last.version, last.previous)
        return (self.aliases.get(CHAMPION), self.aliases.get(PREVIOUS)) == wanted
