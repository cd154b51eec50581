"""What serving costs here and elsewhere: one table from one run on one machine.

python -m benchmarks.serving

A project with two versions is made (`--project` uses one that is there), and its champion is served
by each server with the same number of ONNX Runtime's threads. Raw `session.run` and the servers
take turns, so that a slow phase of the machine meets all of them; a cell is the median of its
rounds. The processor time is that of a server's processes, per request, with 32 clients, less what
`session.run` itself costs; requests that were joined into a batch cost less of it, which counts
for the server. The load comes from a process of its own on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import serving_servers as servers
from benchmarks.serving_load import Load, Measured, begin, measure, result
from benchmarks.serving_servers import ROOT, Asked, Running, Start, running
from pipelines.data.prepared import load_split
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.systems.processes import exit_on_sigterm

CLIENTS = 32
STARTS: dict[str, Callable[[Asked, int], Start]] = {
    "prong-binary": lambda asked, port: servers.prong_start(asked, port, binary=True),
    "prong-json": lambda asked, port: servers.prong_start(asked, port, binary=False),
    "plain": servers.plain_start,
    "litserve": servers.litserve_start,
    "mlserver": servers.mlserver_start,
    "mlflow": servers.mlflow_start,
}


def _prong(project: Path, *arguments: str, nice: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=(lambda: os.nice(nice)) if nice else None,
    )
    if done.returncode:
        raise RuntimeError(f"prong {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def make_project(folder: Path) -> Path:
    """Make a project of the shipped digits whose champion replaced another."""
    project = folder / "project"
    _prong(folder, "init", str(project), "--template", "digits")
    for settings in (["train.epochs=2", "train.processes=1"], ["train.seed=1"]):
        _prong(project, "run", *(f"--set={value}" for value in settings))
    return project


def live(project: Path) -> tuple[str, int]:
    """Return the model's name and the version that the history says is live."""
    found = json.loads(_prong(project, "status", "--json"))
    return str(found["model"]), int(found["version"])


def previous(project: Path) -> int:
    """Return the version that was live before."""
    return int(json.loads(_prong(project, "history", "--json"))["entries"][-1]["replaced"])


def raw_times(model: OnnxModel, image: NDArray[Any], count: int) -> tuple[float, float, float]:
    """Return p50 and p99 of the runtime alone, ms, and its processor time for one image, ms."""
    session, given = model._session, {model.card.inputs[0]: image}
    outputs = [model.card.outputs[0]]
    times = []
    used = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        session.run(outputs, given)
        times.append(time.perf_counter() - start)
    used = (time.process_time() - used) / count
    p50, p99 = 1000 * np.quantile(times, [0.5, 0.99])
    return float(p50), float(p99), 1000 * used


def reload_figures(server: Running, project: Path, changes: int) -> dict[str, float]:
    """Return p99 at full load in peace and while versions change, ms, and the failed requests.

    The commands that change what is live run at the lowest priority, in both halves: in production
    they are at work on another machine.
    """
    many = replace(server.load, clients=CLIENTS)
    found: dict[str, float] = {}
    version, before = live(project)[1], previous(project)
    for name in ("steady", "reloads"):
        load = begin(replace(many, seconds=changes * 8.0))
        for _ in range(changes):
            began = time.perf_counter()
            if name == "reloads":
                version, before = before, version
                _prong(project, "rollback", "--to", str(version), nice=19)
            else:
                _prong(project, "history", nice=19)
            time.sleep(max(0.0, 7.5 - (time.perf_counter() - began)))
        ended: Measured = result(load)
        found |= {f"{name}_p99": ended.p99, f"{name}_failed": float(ended.failed)}
        found[f"{name}_answered"] = float(ended.answered)
    return found


def compare(asked: Asked, names: list[str], rounds: int, requests: int) -> dict[str, Any]:
    """Measure raw `session.run` and the servers in turns.

    Args:
        asked: The image and the model.
        names: Of `STARTS`.
        rounds: Turns of each.
        requests: Of each turn.

    Returns:
        `raw`, and one entry for each server: lists of what each round gave.
    """
    model = OnnxModel.load(asked.onnx, "cpu", threads=asked.threads)
    found: dict[str, Any] = {"raw": []}
    raw_times(model, asked.image, 200)
    with ExitStack() as stack:
        at_work = {}
        for name in names:
            port = servers.free_port()
            try:
                start = STARTS[name](asked, port)
                log = asked.scratch / f"{name.replace(' ', '-')}.log"
                at_work[name] = stack.enter_context(running(start, port, log))
            except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
                continue
            found[name] = {"ready": at_work[name].ready, "one": [], "many": [], "cpu": []}
            warmed = measure(replace(at_work[name].load, requests=200))
            if warmed.failed:
                print(f"{name}: {warmed.said}", file=sys.stderr)
        for _ in range(rounds):
            found["raw"].append(raw_times(model, asked.image, requests))
            for name, server in at_work.items():
                found[name]["one"].append(measure(replace(server.load, requests=requests)))
                before = server.cpu()
                many: Load = replace(server.load, clients=CLIENTS, requests=2 * requests)
                found[name]["many"].append(measure(many))
                found[name]["cpu"].append(1000 * (server.cpu() - before) / (2 * requests))
    return found


def show(found: dict[str, Any], reloads: dict[str, float] | None, console: Console) -> None:
    """Print what was measured as a table."""
    raw_p50, raw_p99, raw_cpu = (median(row[at] for row in found["raw"]) for at in range(3))
    table = Table(box=None, header_style="bold")
    heads = (
        "p50 ms",
        "over raw",
        "p99 ms",
        "over raw",
        "req/s at 32",
        "p99 at 32",
        "CPU ms",
        "beyond",
    )
    for head in ("server", *heads, "ready s", "failed"):
        table.add_column(head, justify="left" if head == "server" else "right")
    table.add_row(
        "session.run", f"{raw_p50:.3f}", "", f"{raw_p99:.3f}", "", "", "", f"{raw_cpu:.3f}"
    )
    for name, row in found.items():
        if name == "raw":
            continue
        p50, p99 = (median(getattr(one, key) for one in row["one"]) for key in ("p50", "p99"))
        rate = median(many.answered / many.seconds for many in row["many"])
        many_p99 = median(many.p99 for many in row["many"])
        cpu, failed = median(row["cpu"]), sum(one.failed for one in (*row["one"], *row["many"]))
        table.add_row(
            *(name, f"{p50:.3f}", f"+{p50 - raw_p50:.3f}", f"{p99:.3f}", f"+{p99 - raw_p99:.3f}"),
            *(f"{rate:.0f}", f"{many_p99:.2f}", f"{cpu:.3f}", f"{cpu - raw_cpu:.3f}"),
            *(f"{row['ready']:.1f}", str(failed)),
        )
    console.print(table)
    if reloads is not None:
        steady, changed = reloads["steady_p99"], reloads["reloads_p99"]
        failed = reloads["steady_failed"] + reloads["reloads_failed"]
        count = reloads["steady_answered"] + reloads["reloads_answered"]
        console.print(
            f"reload under {CLIENTS} clients: p99 {steady:.2f} ms in peace, {changed:.2f} ms "
            f"while versions change ({changed / steady:.2f}×); {failed:.0f} of {count:.0f} "
            "requests failed"
        )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--project", type=Path, help="a project with a champion and one before it")
    parser.add_argument("--servers", default=",".join(STARTS), help="which, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="of each turn, one client")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--reloads", type=int, default=4, help="changes of version; 0: none")
    asked_for = parser.parse_args()
    exit_on_sigterm()  # so that no server is left behind
    names = asked_for.servers.split(",")
    if unknown := [name for name in names if name not in STARTS]:
        parser.error(f"--servers {unknown[0]!r}: allowed: {', '.join(STARTS)}")
    console = Console(highlight=False, width=160)
    with tempfile.TemporaryDirectory(prefix="prong-serving-") as folder:
        scratch = Path(folder)
        project = (asked_for.project or make_project(scratch)).resolve()
        name, version = live(project)
        image = load_split(project / "data/prepared", "test").inputs[:1]
        asked = Asked(
            project, project / "models/model.onnx", name, image, asked_for.threads, scratch
        )
        console.print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors; {name} "
            f"version {version}; {asked.threads} thread of ONNX Runtime"
        )
        found = compare(asked, names, asked_for.rounds, asked_for.requests)
        reloads = None
        if asked_for.reloads:
            port = servers.free_port()
            start = STARTS["prong-binary"](asked, port)
            with running(start, port, scratch / "reload.log") as server:
                reloads = reload_figures(server, project, asked_for.reloads)
        show(found, reloads, console)


if __name__ == "__main__":
    main()
