"""SIGKILL at every step boundary: aliases, versions and history come out whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest
from fork_server import KILLED, Ended
from registries import Registries, Registry

from pipelines.core.faults import POINTS

BY_COMMAND = {
    command: [point for point in POINTS if point.startswith(command)]
    for command in ("register", "promote", "rollback")
}
NEXT = ("history", "itself", "register", "promote", "history")


@dataclass(frozen=True)
class Case:
    """A command that is to die in a situation.

    Attributes:
        command: Which.
        situation: Before.
        model: The checkout it is called in.
        champion: Who is champion once it has come to its end.
        options: Of the command.
    """

    command: str
    situation: str
    model: str
    champion: int | None
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("register", "empty", "A", None),
    Case("register", "one", "B", 1),
    Case("register", "two", "C", 2),
    Case("promote", "registered", "A", 1),
    Case("promote", "challenged", "B", 2),
    Case("promote", "returned", "C", 3, {"version": 3, "asked": True}),
    Case("rollback", "two", "B", 1),
    Case("rollback", "three", "C", 1, {"to": "1"}),
)


def tries() -> list[Any]:
    """Return every point of every case, each with another command as the next."""
    points = [(case, point) for case in CASES for point in BY_COMMAND[case.command]]
    return [
        pytest.param(case, point, following, id=f"{case.situation}-{point}-{following}")
        for (case, point), following in zip(points, cycle(NEXT), strict=False)
    ]


def whole(seen: Any) -> None:
    """Check what must hold at every moment."""
    for alias, number in seen["aliases"].items():
        assert number in seen["complete"], f"{alias} names version {number}, which is not complete"
    assert len(set(seen["sha256"])) == len(seen["sha256"]), "bytes were registered twice"
    assert seen["damage"] == []
    numbers = [entry["sequence"] for entry in seen["entries"]]
    assert numbers == list(range(1, len(numbers) + 1))


def whole_again(seen: Any, before: Any) -> None:
    """Check what must hold after the next command."""
    whole(seen)
    assert not seen["intent"]
    assert seen["agrees"]
    assert seen["entries"][: len(before["entries"])] == before["entries"], "history was lost"
    assert seen["all"] == seen["complete"], "a version is left half-made"
    assert set(before["complete"]) <= set(seen["complete"]), "a version was lost"


def refused(ended: Ended) -> bool:
    """Whether a command said no in words for its user, and did not break."""
    return ended.code == 1 and ended.said.split(":")[0] in ("UserError", "Failed")


def die_and_go_on(registry: Registry, case: Case, point: str, following: str) -> None:
    """Kill a command at a point, let another command follow, then the first one again."""
    before = registry.look()
    ended = registry.call(case.model, case.command, point, **case.options)
    assert ended.code == KILLED, f"{point} was not reached: {ended}"
    whole(registry.look())

    if following == "itself":  # and dies again, unless it was completed on the way there
        again = registry.call(case.model, case.command, point, **case.options)
        assert again.code in (KILLED, 0) or (case.command != "register" and refused(again)), again
        whole(registry.look())
        following = "history"
    # Every command first completes what was interrupted. A promotion may then find no challenger.
    mended = registry.call("A" if following == "register" else case.model, following)
    assert mended.code == 0 or (following == "promote" and refused(mended)), mended
    seen = registry.look()
    whole_again(seen, before)

    if seen["aliases"].get("champion") != case.champion or case.command == "register":
        done = registry.call(case.model, case.command, **case.options)
        assert done.code == 0, done.said
    seen = registry.look()
    whole_again(seen, before)
    if case.command == "register":
        made = len(before["complete"]) + 1
        assert len(seen["complete"]) == made, "registered twice, or not at all"
    else:
        assert seen["aliases"]["champion"] == case.champion
        changes = [entry["version"] for entry in seen["entries"][len(before["entries"]) :]]
        assert changes == [case.champion], "history was doubled"
        assert seen["aliases"].get("challenger") != case.champion


@pytest.mark.parametrize(
    ("number", "point"),
    [(1, "register.version"), (4, "promote.champion"), (6, "rollback.previous")],
)
def test_a_command_killed_half_way_is_brought_to_its_end(
    on_sqlite: Registries, number: int, point: str
) -> None:
    case = CASES[number]
    die_and_go_on(on_sqlite.at(case.situation), case, point, "history")


def one_step_back(registries: Registries, point: str) -> None:
    registry = registries.at("three")
    assert registry.call("A", "rollback", point).code == KILLED
    said = registry.told("A", "rollback")
    assert (said["version"], said["replaced"], said["previous"]) == (2, 3, 1)
    assert registry.look()["aliases"] == {"champion": 2, "previous": 1}


def test_a_rollback_that_died_and_is_typed_again_goes_one_step_back(on_sqlite: Registries) -> None:
    one_step_back(on_sqlite, "rollback.intent")


@pytest.mark.slow
@pytest.mark.parametrize("point", [p for p in BY_COMMAND["rollback"] if p != "rollback.done"])
def test_wherever_it_died_it_goes_one_step_back(on_sqlite: Registries, point: str) -> None:
    one_step_back(on_sqlite, point)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "point", "following"), tries())
def test_a_kill_at_every_step_on_sqlite(
    on_sqlite: Registries, case: Case, point: str, following: str
) -> None:
    die_and_go_on(on_sqlite.at(case.situation), case, point, following)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "point", "following"), tries())
def test_a_kill_at_every_step_on_postgresql(
    on_postgres: Registries, case: Case, point: str, following: str
) -> None:
    die_and_go_on(on_postgres.at(case.situation), case, point, following)


def test_every_point_is_tried_and_there_are_enough_tries() -> None:
    tried = [param.values[1] for param in tries()]
    # Those of a training are tried in tests/pipelines/training/test_resume.py.
    ours = {point for point in POINTS if point.partition(".")[0] not in ("train", "checkpoint")}
    assert set(tried) == ours
    assert 2 * len(tried) >= 100
