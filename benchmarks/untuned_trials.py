"""One training of `benchmarks.untuned`, and the small file that keeps what it came to.

A file's name has a hash of all that decides its content: the job, the versions of torch and of the
optimizer's package, and the code of the networks, the data and the methods, with the library's own
code where the library takes part. Comments and docstrings do not count. What changed is therefore
done again, and only that. The images do not count either: a folder of results belongs to one folder
of images.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pipelines.paper
import prong
from benchmarks import peers, untuned_data
from benchmarks.untuned_data import MEASURED, Examples
from benchmarks.untuned_workloads import WORKLOADS

T = TypeVar("T")

MARKS = 20
"""How often in a training the loss is measured."""


@dataclass(frozen=True)
class Job:
    """A training that is to be done."""

    workload: str
    method: str
    rate: float
    seed: int
    updates: int

    @property
    def marks(self) -> tuple[int, ...]:
        """Updates after which the training loss is measured, evenly spaced."""
        return tuple(
            sorted({math.ceil(self.updates * mark / MARKS) for mark in range(1, MARKS + 1)})
        )


@dataclass(frozen=True)
class Trial:
    """What a training came to.

    Attributes:
        losses: On training images at each of the job's marks: cross-entropy in nats, or an image's
            summed squared error. Infinite from where a loss was not finite.
        error: On test images: wrong answers in per cent, or an image's summed squared error.
        seconds: Training alone, without measuring.
    """

    job: Job
    losses: tuple[float, ...]
    error: float
    seconds: float

    @property
    def final(self) -> float:
        """The training loss at the end."""
        return self.losses[-1]


def resolved(workload: str, method: str) -> tuple[str, str]:
    """Return the workload and method whose training is meant: BN + SGD is SGD on the twin."""
    return (WORKLOADS[workload].twin, "sgd") if method == "bn+sgd" else (workload, method)


def measure(model: nn.Module, images: Tensor, labels: Tensor | None) -> tuple[float, float]:
    """Return loss and error, as `Trial` has them, on the first `MEASURED` images."""
    images = images[:MEASURED]
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in images.split(50)])
    model.train()
    if labels is None:
        squared = float((torch.sigmoid(outputs) - images).square().sum(1).mean())
        return squared, squared
    labels = labels[:MEASURED]
    wrong = 100 * float((outputs.argmax(1) != labels).double().mean())
    return float(F.cross_entropy(outputs, labels)), wrong


def train(job: Job, examples: Examples) -> Trial:
    """Train once; a loss that is not finite, or a failed decomposition, ends it and is infinite."""
    workload = WORKLOADS[job.workload]
    torch.manual_seed(job.seed)
    network = workload.build()
    generator = torch.Generator().manual_seed(job.seed)
    losses: list[float] = []
    error, seconds = math.inf, 0.0
    try:
        batches = examples.first(2048, workload.batch)
        training = peers.begin(peers.METHODS[job.method], network, job.rate, batches)
        seconds = training.start
        for update in range(1, job.updates + 1):
            x, labels = examples.draw(generator, workload.batch)
            start = time.perf_counter()
            if not math.isfinite(training.step(x, labels)):
                break
            seconds += time.perf_counter() - start
            if update in job.marks:
                losses.append(measure(training.model, examples.images, examples.labels)[0])
        else:
            error = measure(training.model, examples.test, examples.test_labels)[1]
    except torch.linalg.LinAlgError:
        pass
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
    losses += [math.inf] * (len(job.marks) - len(losses))
    if not math.isfinite(losses[-1]) or not math.isfinite(error):
        losses[-1] = error = math.inf
    return Trial(job, tuple(losses), error, seconds)


@cache
def fingerprint(paths: tuple[Path, ...]) -> str:
    """Return a hash of Python sources without comments, docstrings and layout."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [part for part in node.body if not _is_string(part)]
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _is_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def circumstances(methods: Iterable[str]) -> dict[str, str]:
    """Return versions and hashes of code that these methods depend on."""
    chosen = [peers.METHODS[name] for name in methods]
    here = Path(__file__).parent
    own = ("untuned_data", "untuned_workloads", "untuned_trials", "peers", "workloads")
    shared = ("networks", "newton_muon", "peer_optimizers")
    paths = [here / f"{name}.py" for name in own]
    paths += [Path(pipelines.paper.__file__).with_name(f"{name}.py") for name in shared]
    found = {"torch": torch.__version__, "benchmarks": fingerprint(tuple(paths))}
    if any(method.whitened for method in chosen):
        library = Path(prong.__file__).parent
        found["prong"] = fingerprint(tuple(library.rglob("*.py")))
    for package in {method.package for method in chosen} - {""}:
        found[package] = version(package)
    return found


def digest(value: object) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def place(out: Path, job: Job) -> Path:
    """Return the file of a job's trial."""
    name = f"{job.workload}--{job.method}--{job.rate:g}--{job.seed}"
    return out / f"{name}--{digest([asdict(job), circumstances([job.method])])}.json"


def write(path: Path, content: object) -> None:
    """Write JSON under a temporary name, then rename: a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read(path: Path, parse: Callable[[object], T]) -> T | None:
    """Return what a file holds; None if there is none, or, with a message, if it is broken."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        print(f"{path}: not a result: {error}; it is done again", file=sys.stderr, flush=True)
        return None


def save(path: Path, trial: Trial) -> None:
    """Keep a trial; an infinite number is null."""
    content = {
        "job": asdict(trial.job),
        "losses": [loss if math.isfinite(loss) else None for loss in trial.losses],
        "error": trial.error if math.isfinite(trial.error) else None,
        "seconds": trial.seconds,
    }
    write(path, content)


def load(path: Path, job: Job) -> Trial | None:
    """Return the kept trial of a job, if there is one and it is whole."""

    def parse(content: object) -> Trial:
        found = fields(content, ("job", "losses", "error", "seconds"))
        if found["job"] != asdict(job):
            raise ValueError(f"job = {found['job']}, expected {asdict(job)}")
        losses = found["losses"]
        if not isinstance(losses, list) or len(losses) != len(job.marks):
            raise ValueError(f"losses = {losses}, expected {len(job.marks)} numbers")
        return Trial(
            job,
            tuple(number("losses", loss, null=True) for loss in losses),
            number("error", found["error"], null=True),
            number("seconds", found["seconds"]),
        )

    return read(path, parse)


def fields(content: object, names: Sequence[str]) -> dict[str, object]:
    """Return a JSON object that has just these fields.

    Raises:
        ValueError: If it has not.
    """
    if not isinstance(content, dict) or set(content) != set(names):
        raise ValueError(f"{str(content)[:80]}, expected an object of {', '.join(names)}")
    return content


def number(name: str, value: object, null: bool = False) -> float:
    """Return a finite number that is not negative, or infinity for an allowed null.

    Raises:
        ValueError: If it is something else.
    """
    if value is None and null:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} = {value!r}, expected a number")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} = {value!r}, expected a finite number ≥ 0")
    return float(value)


@cache
def examples_of(data: str, folder: Path) -> Examples:
    """Return a workload's images, read once in a process."""
    return untuned_data.READERS[data](folder)


def perform(job: Job, folder: Path, path: Path) -> Trial:
    """Train on one thread and keep the trial; this is what a worker process does."""
    torch.set_num_threads(1)
    trial = train(job, examples_of(WORKLOADS[job.workload].data, folder))
    save(path, trial)
    return trial
