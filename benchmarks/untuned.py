"""PRONG as it comes against baselines at the best of four rates; one table from one command.

python -m benchmarks.untuned FOLDER

FOLDER holds `mnist/` and `cifar10/`. PRONG has the library's defaults, with one rate for every
network. Each baseline's rate is the one of four that ends at the least training loss with seed 0;
that rate is then trained with the other seeds. Nothing is chosen by test error. Networks, batches
and starts are the same for all methods. A network with batch normalisation makes PRONG PRONG⁺, and
"BN + SGD" is SGD on the network of the workload of that name with -bn.

Every training is kept in --out as soon as it is done. The same command goes on from there; a second
one for other workloads, methods or seeds does only what is missing. How long a step takes is
measured at the end, in turns, while nothing else runs. The whole takes about two hours on two
cores. With --every-peer Muon, Newton-Muon, SOAP, Shampoo and Muon on V train all auto-encoders, and
not one alone, which takes four hours more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks import peers, untuned_plan, untuned_table, untuned_times, untuned_trials
from benchmarks.untuned_data import FOLDERS
from benchmarks.untuned_plan import Work
from benchmarks.untuned_times import Clock, Times
from benchmarks.untuned_trials import Job, Trial
from benchmarks.untuned_workloads import WORKLOADS
from pipelines.core.errors import UserError
from pipelines.paper.machine import processor


@dataclass
class Progress:
    """Says on stderr how far the trainings are.

    Attributes:
        jobs: How many run at a time.
        total: Trainings in all.
        seconds: What trainings of a workload and method took.
    """

    jobs: int
    total: int = 0
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, job: Job, took: float) -> None:
        """Learn from a training that took so many seconds."""
        self.seconds.setdefault((job.workload, job.method), []).append(took)

    def say(self, outcome: str, left: Sequence[Job], later: int, work: Work, job: Job) -> None:
        """Print a line.

        Args:
            outcome: What is to be said of the job.
            left: Trainings that are known and not done.
            later: How many there will be besides.
            work: What is done.
            job: What the line is about.
        """
        seconds = sum(map(self._guess, left)) * (1 + later / max(1, len(left))) / self.jobs
        print(
            f"[{len(work.done)}/{self.total}] {job.workload} {job.method}, rate {job.rate:g}, "
            f"seed {job.seed}: {outcome}; about {seconds / 60:.0f} min of training left",
            file=sys.stderr,
            flush=True,
        )

    def _guess(self, job: Job) -> float:
        own = self.seconds.get((job.workload, job.method))
        if own:
            return statistics.mean(own)
        workload = WORKLOADS[job.workload]
        weight = peers.METHODS[job.method].weight if workload.data == "pixels" else 1
        return workload.seconds * weight * job.updates / workload.updates


def results(
    todo: Sequence[Job],
    work: Work,
    folder: Path,
    jobs: int,
    started: Callable[[Job], None],
) -> Iterator[tuple[Trial, float]]:
    """Train, in worker processes if `jobs` is more than 1; yield trials and their seconds."""
    if jobs == 1:
        for job in todo:
            started(job)
            begun = time.perf_counter()
            trial = untuned_trials.perform(job, folder, work.paths[job])
            yield trial, time.perf_counter() - begun
        return
    # The parent takes Ctrl-C, and ends its workers.
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    waiting = list(todo)
    running: dict[Future[Trial], float] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                started(job)
                future = pool.submit(untuned_trials.perform, job, folder, work.paths[job])
                running[future] = time.perf_counter()
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                took = time.perf_counter() - running.pop(future)
                yield future.result(), took
    finally:
        workers = multiprocessing.active_children() if running or waiting else []
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def train(work: Work, folder: Path, jobs: int) -> None:
    """Do all trainings that are missing: every rate, then the other seeds of the best."""
    stages = (work.first, work.second)
    progress = Progress(jobs)
    for stage in stages:
        left = stage()
        later = work.later() if stage == work.first else 0
        progress.total = len(work.done) + len(left) + later
        begun = partial(progress.say, "runs", left, later, work)
        for trial, took in results(list(left), work, folder, jobs, begun):
            work.done[trial.job] = trial
            left.remove(trial.job)
            progress.add(trial.job, took)
            progress.say(f"{trial.final:.4g} in {took:.0f} s", left, later, work, trial.job)


def clock(work: Work, folder: Path, threads: int, run: bool) -> dict[str, Times]:
    """Return each workload's times, measured now where they are missing and `run` allows it."""
    found = {}
    torch.set_num_threads(threads)
    for workload in dict.fromkeys(workload for workload, _ in work.pairs):
        entries = [work.entry(*pair) for pair in work.pairs if pair[0] == workload]
        rates = {entry.method: entry.rate for entry in entries if entry.rate is not None}
        if not rates:
            continue
        rates["sgd"] = 0.0  # what all ratios are to must not diverge
        methods = tuple(name for name in peers.METHODS if name in rates)
        wanted = Clock(workload, methods, threads, work.share)
        path = wanted.path(work.out)
        times = untuned_times.load(path, wanted)
        if times is None and run:
            print(f"{workload}: time of a step, {', '.join(methods)}", file=sys.stderr, flush=True)
            examples = untuned_trials.examples_of(WORKLOADS[workload].data, folder)
            times = untuned_times.take(wanted, rates, examples)
            untuned_times.save(path, times)
        if times is not None:
            found[workload] = times
    return found


def report(work: Work, times: dict[str, Times], threads: int, words: Sequence[str]) -> str:
    """Return both tables and what they were made with."""
    entries = [work.entry(*pair) for pair in work.pairs]
    packages = untuned_trials.circumstances({method for _, method in work.pairs})
    versions = [f"{name} {value[:12]}" for name, value in packages.items()]
    missing = sorted(
        {peers.METHODS[name].label for name in peers.METHODS if peers.METHODS[name].missing}
    )
    lines = [
        untuned_table.table(entries, times),
        "",
        "Losses and errors of auto-encoders: summed squared error of an image; otherwise "
        "cross-entropy, and wrong answers in per cent. Training loss: on 2,000 training images, "
        f"median over {work.seeds} seeds. *: the rate is at an end of the four.",
        "",
        untuned_table.summary(entries, times),
        "",
        f"python -m benchmarks.untuned {shlex.join(words)}",
        "",
        f"{processor()}, {threads} threads for the times and 1 for each training; "
        f"Python {platform.python_version()}, {', '.join(versions)} (of code: a hash); "
        f"PRONG's rate is {untuned_plan.RATE:g}; {work.share:.0%} of the updates.",
    ]
    if missing:
        lines += ["", f"Not run without prong[benchmarks]: {', '.join(missing)}."]
    return "\n".join(lines)


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    """Return the command line's values; ends the process with status 2 if one is not allowed."""
    parser = argparse.ArgumentParser(description="PRONG as it comes, against tuned baselines.")
    parser.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="with mnist/ and cifar10/"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/untuned"), help="kept trials")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(WORKLOADS),
        metavar="WORKLOAD",
        default=list(WORKLOADS),
        help=", ".join(WORKLOADS),
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(peers.METHODS),
        metavar="METHOD",
        default=list(peers.METHODS),
        help=", ".join(peers.METHODS),
    )
    parser.add_argument("--every-peer", action="store_true", help="on every auto-encoder; slow")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for the times")
    parser.add_argument("--updates-share", type=float, default=1.0, metavar="SHARE")
    parser.add_argument("--table", action="store_true", help="print what there is; run nothing")
    asked = parser.parse_args(words)
    for name in ("seeds", "jobs", "threads"):
        if getattr(asked, name) < 1:
            parser.error(f"--{name} = {getattr(asked, name)}: must be at least 1")
    if not 0 < asked.updates_share <= 1:
        parser.error(f"--updates-share = {asked.updates_share}: must be above 0 and at most 1")
    if asked.folder is None and not asked.table:
        parser.error("FOLDER: missing; needed: a folder that holds mnist and cifar10")
    needed = {WORKLOADS[name].data for name in asked.only}
    for folder in sorted({FOLDERS[data] for data in needed if data in FOLDERS}):
        if not asked.table and not (asked.folder / folder).is_dir():
            parser.error(
                f"FOLDER = {str(asked.folder)!r}: there is no folder {folder} in it; allowed: a "
                "folder that holds mnist and cifar10"
            )
    return asked


def pairs(asked: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the workloads and methods that are asked for and can run."""
    return [
        (name, method)
        for name, workload in WORKLOADS.items()
        for method in workload.methods
        if name in asked.only and method in asked.methods
        if not peers.METHODS[method].missing
        if asked.every_peer or method not in workload.costly
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing and print the tables."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = arguments_of(words)
    work = Work(pairs(asked), asked.seeds, asked.updates_share, asked.out)
    try:
        if asked.table:
            work.first()
            work.second()
        else:
            train(work, asked.folder, asked.jobs)
        times = clock(work, asked.folder, asked.threads, run=not asked.table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(report(work, times, asked.threads, words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
