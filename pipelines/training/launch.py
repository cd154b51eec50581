"""The stage train: starts the ranks under torchrun, reads their events, and records the run."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipelines.core.config import Params, TrainConfig
from pipelines.core.errors import Failed, UserError
from pipelines.core.files import atomic_directory, sha256_file, sweep, write_json
from pipelines.core.paths import Layout
from pipelines.core.waiting import wait_until
from pipelines.data.prepared import load_card
from pipelines.systems import mlflow as tracking
from pipelines.training import checkpoint, methods
from pipelines.training.engine_choice import LOCAL, check_elsewhere, check_seen, engine_of
from pipelines.training.events import CONDITIONING, HISTORY, write_table
from pipelines.training.follower import Follower, progress_bar
from pipelines.training.rank import Job
from pipelines.training.submitted import Submission, submission_of, submitted_elsewhere
from pipelines.training.supervision import Machines, supervise, without_signs
from pipelines.training.training_folder import TrainingFolder, name, tidy


def device(config: TrainConfig) -> str:
    """Return the device for training, with `auto` resolved.

    Raises:
        UserError: If CUDA is requested and absent.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError(
            "train.device = 'cuda': torch finds no CUDA device here; allowed: auto, cpu"
        )
    return "cuda" if available and config.device != "cpu" else "cpu"


def processes(config: TrainConfig, device: str) -> int:
    """Return the number of ranks, with `auto` resolved: one per GPU, or 1 without a GPU.

    Raises:
        UserError: If there are more ranks than GPUs.
    """
    if config.processes == "auto":
        count = torch.cuda.device_count() if device == "cuda" else 1
    else:
        count = config.processes
    if device == "cuda" and count > torch.cuda.device_count():
        raise UserError(
            f"train.processes = {count}: there are {torch.cuda.device_count()} CUDA devices; "
            "one process per device is allowed"
        )
    return count


def check_batch(config: TrainConfig, ranks: int) -> None:
    """Refuse a batch that gives a rank, or one of its parts, fewer than two images.

    Raises:
        UserError: If it does.
    """
    parts = ranks * config.accumulate
    if config.batch < 2 * parts:
        raise UserError(
            f"train.batch = {config.batch}: at least 2 images for each of {parts} parts are "
            f"needed ({ranks} processes × train.accumulate = {config.accumulate})"
        )


def _threads(count: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // count)


def train(layout: Layout, params: Params, *, afresh: bool = False) -> None:
    """Train the network and write `models/trained` and the tables of its history.

    An interrupted training continues from its last checkpoint, in the same MLflow run.

    Args:
        layout: The checkout.
        params: All parameters; `train` decides the training, the others are recorded.
        afresh: Whether to repeat a training that is already complete.

    Raises:
        UserError: If CUDA is absent, memory runs out, the loss diverges, or the registry does not
            answer.
        Failed: If a rank crashed or hung.
    """
    config, watch = params.train, params.supervision
    engine = engine_of(params.cluster)
    if engine:
        check_elsewhere(config, params.cluster)
    place = config.device if engine else device(config)
    count = int(config.processes) if engine else processes(config, place)
    world = count * watch.nodes
    check_batch(config, world)
    folder = _folder(layout, config)
    machines = Machines(count, watch.nodes, watch.rendezvous, elsewhere=engine is not None)
    submission = None
    if engine:
        check_seen(params.cluster, _read_by_ranks(layout))
        submission = Submission(engine, params.cluster, folder, layout.root, machines)

    def at_work() -> str | None:
        if submission:
            return submission.found()
        submitted_elsewhere(folder, params.cluster)
        return None

    with folder.held(at_work) as found:
        if found is None:
            folder.job.unlink(missing_ok=True)  # of an earlier attempt, which no machine may join
            tidy(layout.trainings, folder.path.name)
        sweep(layout.trained)
        before = checkpoint.newest(folder.checkpoints)
        if found is not None:
            print(f"  train: follows a job that an earlier run left: {found}", flush=True)
        elif not _goes_on(before, world, place, folder.remembered(), afresh):
            folder.forget()
        elif before:
            print(f"  train: continues from step {before.step}", flush=True)
        folder.signs.mkdir(exist_ok=True)
        job = _job(layout, params, folder, place, world)
        if found is not None:
            job = submission_of(folder, job)
        tracking.close_dead_runs(layout)
        values = {f"{s}.{k}": v for s, d in params.recorded().items() for k, v in d.items()}
        values["train.lr"] = methods.learning_rate(config)
        tags = {"prong.method": config.method, "prong.device": place, "prong.processes": str(world)}
        with (
            tracking.training_run(
                layout,
                experiment=params.model_name,
                params=values,
                tags=tags,
                resume=folder.remembered().get("run_id"),
            ) as run,
            progress_bar() as progress,
        ):
            folder.remember(run_id=run.run_id, ranks=world, device=place)
            follow = Follower(folder.events, run, progress)
            if found is None:
                without_signs(folder)
                job.write(folder.job)
            with _saying_where_it_stopped(folder):
                if submission:
                    submission.run(job, found, restarts=watch.restarts, tick=follow)
                else:
                    supervise(
                        *(job, folder, machines),
                        root=layout.root,
                        restarts=watch.restarts,
                        tick=follow,
                    )
            if not follow.end:
                raise Failed("the ranks ended without reporting a result")
            with atomic_directory(layout.trained) as out:
                shutil.copytree(folder.network, out, dirs_exist_ok=True)
            weights = sha256_file(layout.trained / "network.safetensors")
            write_table(layout.reports / "history.csv", HISTORY, follow.history)
            write_table(layout.reports / "conditioning.csv", CONDITIONING, follow.conditioning)
            write_json(layout.reports / "train.json", _figures(follow, params, place, world))
            run.tag(tracking.WEIGHTS_TAG, weights)


def _read_by_ranks(layout: Layout) -> dict[str, Path]:
    """Return what the ranks read or write, in words and as paths."""
    return {
        "the project": layout.root,
        "data/prepared": layout.prepared,
        "the folder of trainings": layout.trainings,
    }


@contextmanager
def _saying_where_it_stopped(folder: TrainingFolder) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        saved = checkpoint.newest(folder.checkpoints)
        if saved:
            said = f"  train: stopped at step {saved.step}; the same command continues from there"
            print(said, flush=True)
        raise


def join(layout: Layout, params: Params) -> None:
    """Join, with this machine, the training that the first machine has begun.

    Args:
        layout: The same checkout as the first machine's, on a file system that both see.
        params: The same parameters.

    Raises:
        UserError: If there is only one machine, or no training begins.
        Failed: If a rank crashed or hung.
    """
    config, watch = params.train, params.supervision
    if params.cluster.engine != LOCAL:
        raise UserError(
            f"cluster.engine = {params.cluster.engine!r}: it starts the ranks of all machines, so "
            "there is nothing to join; allowed with `prong join`: local"
        )
    if watch.nodes == 1:
        raise UserError(
            "supervision.nodes = 1: there is nothing to join; set it to the number of machines, "
            "and supervision.rendezvous to the host:port of the first one"
        )
    place = device(config)
    count = processes(config, place)
    folder = _folder(layout, config)
    job = _begun(folder, watch.timeout)
    machines = Machines(count, watch.nodes, watch.rendezvous, first=False)
    supervise(job, folder, machines, root=layout.root, restarts=watch.restarts, tick=lambda: None)


def _begun(folder: TrainingFolder, patience: float) -> Job:
    """Wait for an active attempt and return its job."""
    if wait_until(lambda: folder.job.is_file() and folder.busy(), patience, pause=0.2):
        return Job.read(folder.job)
    raise UserError(
        f"{folder.path}: no training with these parameters began within {patience:g} s "
        "(supervision.timeout); start it on the first machine"
    )


def _folder(layout: Layout, config: TrainConfig) -> TrainingFolder:
    card = load_card(layout.prepared)
    return TrainingFolder(
        layout.trainings / name(config, card.data_hash, layout.root, card.form.task)
    )


def _goes_on(
    saved: checkpoint.Checkpoint | None,
    world: int,
    place: str,
    remembered: dict[str, Any],
    afresh: bool,
) -> bool:
    """Return whether to continue from the state that an earlier attempt left.

    An interrupted training continues, even with other ranks or another device. A complete training
    is used only for exactly the same settings; with other ranks it is repeated.
    """
    if saved is None or not saved.meta["finished"]:
        return True
    same = remembered.get("ranks") == world and remembered.get("device") == place
    return same and not afresh


def _job(layout: Layout, params: Params, folder: TrainingFolder, place: str, world: int) -> Job:
    watch, cluster = params.supervision, params.cluster
    per_node = world // watch.nodes
    return Job(
        config=params.train,
        prepared=str(layout.prepared),
        folder=str(folder.path),
        device=place,
        threads=_threads(per_node) if cluster.engine == LOCAL else cluster.processors,
        checkpoint=watch.checkpoint,
        keep=watch.keep,
        timeout=watch.timeout,
        ranks=world,
        attempt=f"{os.getpid()}-{time.time_ns()}",
    )


def _figures(follow: Follower, params: Params, place: str, count: int) -> dict[str, Any]:
    steps = [row for row in follow.history if "train_loss" in row]
    evaluations = [row for row in follow.history if "validation_error" in row]
    return {
        "method": params.train.method,
        "device": place,
        **_accelerator(place),
        "processes": count,
        "seed": params.train.seed,
        "lr": methods.learning_rate(params.train),
        "steps": follow.end["steps"],
        "seconds": round(follow.end["seconds"], 2),
        "resumptions": follow.resumptions,
        "train_loss": steps[-1]["train_loss"],
        "validation_error": evaluations[-1]["validation_error"],
        "validation_loss": evaluations[-1]["validation_loss"],
        "best": follow.end["best"],
        "reparametrisations": follow.end["refreshes"],
        "reparametrisation_seconds": round(sum(r["seconds"] for r in follow.conditioning), 3),
        "decomposition_fallbacks": sum(bool(r["fallback"]) for r in follow.conditioning),
    }


def _accelerator(place: str) -> dict[str, str]:
    """Return the GPU's name, and the versions of CUDA and of the driver; `none` on a CPU."""
    if place != "cuda":
        return dict.fromkeys(("gpu", "cuda", "driver"), "none")
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", text)
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": str(torch.version.cuda),
        "driver": found[1] if found else "unknown",
    }
