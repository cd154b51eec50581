"""Many short-lived commands: one process imports all once, and forks a child for each command.

The first process never connects to anything, so a child starts with nothing but imported modules,
as a command does. As a program this reads requests from stdin, one JSON value a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL


@dataclass(frozen=True)
class Ended:
    """A command that came to its end.

    Attributes:
        code: Exit code; of a signal, the number below zero.
        said: What it returned, or the error it ended with.
    """

    code: int
    said: Any


class Nursery:
    """The process that forks, seen from the tests."""

    def __init__(self, process: subprocess.Popen[str], notes: Path) -> None:
        self._process, self._notes, self._count = process, notes, 0

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery died"
        return json.loads(answer)

    def start(self, root: Path, env: Mapping[str, str], command: str, **options: Any) -> int:
        """Start a command of `COMMANDS` in a checkout; return the process id."""
        self._count += 1
        note = self._notes / f"{self._count}.json"
        request = {"root": str(root), "env": dict(env), "command": command, "options": options}
        return int(self._ask({**request, "note": str(note)}))

    def wait(self, pid: int) -> Ended:
        """Wait for a started command."""
        return Ended(**self._ask({"wait": pid}))

    def call(self, root: Path, env: Mapping[str, str], command: str, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(root, env, command, **options))

    def told(self, root: Path, env: Mapping[str, str], command: str, **options: Any) -> Any:
        """Run a command that must succeed, and return what it returned."""
        ended = self.call(root, env, command, **options)
        assert ended.code == 0, ended.said
        return ended.said


def until_stopped(pid: int, within: float = 90.0) -> None:
    """Wait until a process has stopped itself."""
    deadline = time.monotonic() + within
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, "the process did not stop"
        time.sleep(0.02)


@contextmanager
def nursery(notes: Path) -> Iterator[Nursery]:
    """Start the process that forks; it ends with its children when the block does."""
    notes.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(HERE), str(HERE.parents[2])])
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Nursery(process, notes)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _commands() -> dict[str, Any]:
    """Import all that commands need, without connecting to anything, and return the commands."""
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import psycopg2  # noqa: F401
    from checkout import PARAMS

    from pipelines.core.paths import Layout
    from pipelines.gates import judging
    from pipelines.registry import versions as registry
    from pipelines.release import promote as promotion
    from pipelines.release import register as release
    from pipelines.release import transaction, upload
    from pipelines.systems import mlflow as tracking
    from pipelines.systems.mlflow import leases

    assert upload
    assert judging
    params = replace(PARAMS, gates=replace(PARAMS.gates, margin=0.9))
    model = params.model_name

    def register(layout: Layout) -> Any:
        return asdict(release.register(layout, params, "a-flow-run"))

    def promote(layout: Layout, version: int | None = None, asked: bool = False) -> Any:
        done = promotion.promote(layout, params, version, "a-flow-run", asked=asked)
        return {"promoted": done.promoted, "champion": done.champion, "reason": done.reason}

    def release_all(layout: Layout) -> Any:
        version = register(layout)["version"]
        return {"version": version, **promote(layout, version)}

    def rollback(layout: Layout, to: str | None = None) -> Any:
        return asdict(promotion.rollback(layout, model, to, "it was wrong"))

    def history(layout: Layout) -> Any:
        return len(transaction.repaired_state(layout, model).history.entries)

    def look(layout: Layout) -> Any:
        """Say how the registry stands, changing nothing."""
        client = tracking.connect(layout)
        state = transaction.read_state(client, model)
        versions = registry.versions(client, model)
        return {
            "aliases": dict(state.aliases),
            "complete": sorted(v.number for v in versions if v.complete),
            "all": sorted(v.number for v in versions),
            "sha256": sorted(v.sha256 for v in versions if v.complete),
            "entries": [entry.as_json() for entry in state.history.entries],
            "damage": state.history.damage,
            "intent": state.intent is not None,
            "agrees": state.agrees,
        }

    def hold(layout: Layout, short: float = 0) -> Any:
        """Take the lease, stop, and once awake see whether it is still held."""
        tracking.connect(layout)
        with leases.leased(layout, f"registry {model}") as lease:
            assert lease is not None
            os.kill(os.getpid(), signal.SIGSTOP)
            lease.check()
            return lease.token

    found = locals()
    names = ["register", "promote", "release_all", "rollback", "history", "look", "hold"]
    return {name: found[name] for name in names} | {"_leases": leases, "_layout": Layout}


def _child(commands: Mapping[str, Any], request: Mapping[str, Any]) -> int:
    os.environ.update(request["env"])
    if "lasts" in request["options"]:
        commands["_leases"].LASTS = request["options"].pop("lasts")
    layout = commands["_layout"](Path(request["root"]))
    try:
        said, code = commands[request["command"]](layout, **request["options"]), 0
    except BaseException as error:
        said, code = f"{type(error).__name__}: {error}\n{traceback.format_exc()}", 1
    Path(request["note"]).write_text(json.dumps(said))
    return code


def _main() -> None:
    commands = _commands()
    notes: dict[int, Path] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid = request["wait"]
            _, status = os.waitpid(pid, 0)
            code, note = os.waitstatus_to_exitcode(status), notes.pop(pid)
            said = json.loads(note.read_text()) if note.exists() else None
            print(json.dumps({"code": code, "said": said}), flush=True)
            continue
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)
            os._exit(_child(commands, request))
        notes[pid] = Path(request["note"])
        print(pid, flush=True)
    for pid in notes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
