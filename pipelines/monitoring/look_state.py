"""What a look leaves to the next one: how far the log was read, and what was too little to judge.

One file, replaced as a whole once a look is done: a look that was killed is made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.core.errors import UserError
from pipelines.core.files import write_text
from pipelines.core.paths import Layout
from pipelines.monitoring.sample import MOST, Kept, Key, Sample
from pipelines.serving.request_records import Mark

MOST_LOOKS = 200
"""Past looks that are kept, for the picture."""
_STRICT = ConfigDict(strict=True, extra="forbid", ser_json_inf_nan="constants")
_Key = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}-[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]


class _Held(BaseModel):
    model_config = _STRICT

    requests: _Count
    examples: _Count
    drawn_from: _Count
    since: str
    until: str
    kept: Annotated[list[Kept], Field(max_length=MOST)]
    shadow: dict[int, tuple[int, float]]


class PastLook(BaseModel):
    """What an earlier look said of one version.

    Attributes:
        time: When, UTC, ISO 8601.
        version: Of which version.
        tested: Examples that were compared.
        drift: Whether it decided for drift.
        score: Kolmogorov-Smirnov statistic of the drift score; None if there was none.
        answers: The largest one of the answers; None likewise.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    time: str
    version: Annotated[int, Field(ge=1)]
    tested: _Count
    drift: bool
    score: float | None
    answers: float | None


class _File(BaseModel):
    model_config = _STRICT

    format: Annotated[int, Field(ge=1, le=1)]
    position: dict[str, Mark]
    pending: dict[_Key, _Held]
    looks: Annotated[list[PastLook], Field(max_length=MOST_LOOKS)]


class State:
    """What is known of earlier looks at a model's log.

    Attributes:
        position: How far each file was read; None before the first look.
        pending: Samples that were too small to judge; the next look adds to them.
        looks: Earlier looks, the oldest first.
    """

    def __init__(self) -> None:
        self.position: dict[str, Mark] | None = None
        self.pending: dict[Key, Sample] = {}
        self.looks: list[PastLook] = []


def folder(layout: Layout, model: str) -> Path:
    """Return where the state of a model's looks lies."""
    return layout.state / "monitor" / model


def load(layout: Layout, model: str) -> State:
    """Return what earlier looks left; nothing if there was none.

    Raises:
        UserError: If the file is damaged.
    """
    path, state = folder(layout, model) / "state.json", State()
    try:
        found = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return state
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: damaged: {where}: {first['msg']}; delete it, and the next look reads the "
            "whole request log again"
        ) from None
    state.position, state.looks = found.position, found.looks
    for key, held in found.pending.items():
        number, _, sha256 = key.partition("-")
        state.pending[int(number), sha256] = Sample(**dict(held))
    return state


def save(layout: Layout, model: str, state: State) -> None:
    """Keep what a look leaves, atomically."""
    pending = {
        f"{number}-{sha256}": _Held(**vars(sample))
        for (number, sha256), sample in state.pending.items()
    }
    file = _File(
        format=1,
        position=state.position or {},
        pending=pending,
        looks=state.looks[-MOST_LOOKS:],
    )
    write_text(folder(layout, model) / "state.json", file.model_dump_json() + "\n")
