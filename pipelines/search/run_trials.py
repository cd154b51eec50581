"""A search from its start, or from where it was killed, to its last trial."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.errors import Failed, UserError
from pipelines.core.files import sha256_json
from pipelines.core.fingerprints import own_code_of
from pipelines.core.own_code import own_hash
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.search.outcome import Searched, Tried, counting, rank
from pipelines.search.picture import draw, picture_path
from pipelines.search.space import SECTION, Space, brief, configured, present
from pipelines.search.trial import Place, RunningTrial
from pipelines.systems import mlflow as tracking
from pipelines.systems.locks import locked
from pipelines.systems.optuna.studies import Ended, Study
from pipelines.systems.scratch import scratch
from pipelines.training import launch, methods

_PAUSE = 0.05
_HOPELESS = 3
"""So many crashes, with nothing else before, end the search."""
_MOST_JOBS = 8
"""Of `--jobs auto`: each holds its own copy of the data."""


@dataclass(frozen=True)
class Wanted:
    """What a search is to do.

    Attributes:
        space: What is searched.
        trials: How many, in all; those of an earlier call count.
        jobs: Trials at a time; None: as the machine allows.
        epochs: Of a trial.
        seed: Of the proposals.
        name: Of the study; empty: one that follows from what is searched.
        stop_early: Whether a trial that is worse than the median of the others is stopped.
    """

    space: Space
    trials: int
    jobs: int | None
    epochs: int
    seed: int
    name: str
    stop_early: bool


def search(layout: Layout, params: Params, wanted: Wanted, say: Callable[[str], None]) -> Searched:
    """Run the trials that are left of a study.

    Args:
        layout: The checkout; its prepared data are up to date and its environment is set.
        params: Its parameters.
        wanted: What to do.
        say: Called with each line of progress.

    Raises:
        UserError: If another process works on the study, it was made for another search, or the
            store cannot be used.
        Failed: If the first trials all crash.
    """
    base = {k: v for k, v in asdict(params.train).items() if k not in wanted.space}
    data_hash = load_card(layout.prepared).data_hash
    asked = {key: str(one) for key, one in wanted.space.items()}
    own = [own_hash(value, layout.root, key) for key, value in own_code_of(params).items()]
    identity = sha256_json([asked, base, data_hash, wanted.epochs, *own])
    name = wanted.name or f"search-{identity[:10]}"
    folder = layout.state / "search"
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / f"{name}.lock", patience=0))
        except BlockingIOError:
            raise UserError(
                f"--name {name!r}: another process works on this study; wait for it, or take "
                "another name"
            ) from None
        study = Study(
            folder / f"{name}.db",
            name,
            wanted.space,
            seed=wanted.seed,
            parallel=_jobs(params, wanted) > 1,
            stop_early=wanted.stop_early,
        )
        held.callback(study.close)
        _same(study, name, identity)
        dead = study.settle_dead()
        before = Searched(name, wanted.space, _tried(study), wanted.epochs)
        if before.trials:
            lost = f", {len(dead)} of them were killed and begin again" if dead else ""
            say(f"study {name} goes on: {len(before.counted)} of {wanted.trials} trials are "
                f"there{lost}")  # fmt: skip
        else:
            say(f"study {name}: {wanted.trials} trials of {wanted.epochs} epochs")
            first = present(params.train, wanted.space, methods.learning_rate(params.train))
            if first is not None:
                study.propose_first(first)
        tracking.close_dead_runs(layout)
        shared = {f"{SECTION}.{k}": v for k, v in base.items()} | {"data_hash": data_hash}
        runs = held.enter_context(
            tracking.study_run(
                layout,
                experiment=f"{params.model_name}-search",
                name=name,
                params={**shared, **{f"search.{key}": text for key, text in asked.items()}},
                resume=study.notes.get("run_id"),
            )
        )
        study.note("run_id", runs.run_id)
        work = held.enter_context(scratch(folder, f"trials-{name}"))
        _Trials(layout, params, wanted, study, runs, work, say).work_off()
        done = Searched(name, wanted.space, _tried(study), wanted.epochs)
        _tell_store(runs, done)
        if draw(done, picture_path(layout, name)):
            runs.keep_file(picture_path(layout, name))
    return done


def _same(study: Study, name: str, identity: str) -> None:
    if study.notes.get("identity", identity) != identity:
        raise UserError(
            f"--name {name!r}: that study searched something else, or with other data, code of "
            "yours, epochs or parameters of section train; take another name, or leave --name out"
        )
    study.note("identity", identity)


def _tried(study: Study) -> tuple[Tried, ...]:
    return tuple(Tried.of(trial) for trial in study.ended())


def _tell_store(runs: tracking.StudyRun, done: Searched) -> None:
    best, total = done.best, len(done.counted)
    others = [one.run_id for one in done.trials if one.run_id and one is not best]
    runs.show_best(best.run_id or None if best else None, others)
    if best is not None and best.error is not None:
        figures = {"best_validation_error": best.error, "trials": float(total)}
        values = {f"best.{SECTION}.{key}": str(value) for key, value in best.values.items()}
        runs.log(figures, {"prong.best_trial": str(best.number), **values}, step=total)


def _gpus(params: Params) -> list[str]:
    """Return the names of the GPUs that trials may have; none if they train on the CPU."""
    import torch

    if launch.device(params.train) != "cuda":
        return []
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [name for name in named if name] or [str(n) for n in range(torch.cuda.device_count())]


def _jobs(params: Params, wanted: Wanted) -> int:
    gpus = _gpus(params)
    cores = len(os.sched_getaffinity(0))
    if wanted.jobs is not None:
        if gpus and wanted.jobs > len(gpus):
            raise UserError(
                f"--jobs {wanted.jobs}: there are {len(gpus)} GPUs, one for each job is allowed"
            )
        return wanted.jobs
    return max(1, min(len(gpus) or cores, wanted.trials, _MOST_JOBS))


@dataclass
class _Trials:
    """The trials of one call of `search`."""

    layout: Layout
    params: Params
    wanted: Wanted
    study: Study
    runs: tracking.StudyRun
    folder: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._running: dict[RunningTrial, tracking.TrainingRun] = {}
        self._count = _jobs(self.params, self.wanted)
        self._free: list[str | None] = [*_gpus(self.params)] or [None] * self._count
        self._threads = max(1, len(os.sched_getaffinity(0)) // self._count)

    def work_off(self) -> None:
        """Run trials until there are as many as are wanted."""
        with self._ending():
            while True:
                left = self.wanted.trials - len(counting(_tried(self.study)))
                while len(self._running) < min(left, self._count):
                    self._begin()
                if not self._running:
                    return
                for trial in list(self._running):
                    self._look_at(trial)
                time.sleep(_PAUSE)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End what runs, however this ends; the study remembers it as not finished."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            done = len(counting(_tried(self.study)))
            self.say(f"stopped after {done} of {self.wanted.trials} trials; the same command goes "
                     "on from there")  # fmt: skip
            raise
        finally:
            for trial, run in self._running.items():
                trial.close()
                self.runs.end(run, "KILLED")

    def _begin(self) -> None:
        proposal = self.study.ask()
        number, gpu = proposal.number, self._free.pop()
        place = Place(
            root=self.layout.root,
            prepared=self.layout.prepared,
            device="cpu" if gpu is None else "cuda",
            threads=self._threads,
            gpu=gpu,
            timeout=self.params.supervision.timeout,
        )
        values = {f"{SECTION}.{key}": value for key, value in proposal.values.items()}
        run = self.runs.begin(f"trial {number + 1}", values, {"prong.trial": str(number + 1)})
        self.study.note_trial(number, "run_id", run.run_id)
        config = configured(self.params.train, proposal.values, self.wanted.epochs)
        trial = RunningTrial(number, config, place, self.folder / str(number))
        self._running[trial] = run

    def _look_at(self, trial: RunningTrial) -> None:
        """Take what a trial came to; end it if it is at its end, or not worth going on."""
        ended, run, number = not trial.running, self._running[trial], trial.number
        for score in trial.news():
            figures = {"validation_error": score.error, "validation_loss": score.loss}
            run.log(figures, step=score.epoch)
            last = score.epoch >= self.wanted.epochs
            if not self.study.goes_on(number, score.objective, score.epoch) and not last:
                self._end(trial, Ended.STOPPED, f"worse than the median after epoch {score.epoch}")
                return
        if ended and trial.done and trial.scores:
            self._end(trial, Ended.COMPLETE, "")
        elif ended and trial.complaint:
            self._end(trial, Ended.STOPPED, trial.complaint)
        elif ended:
            self._end(trial, Ended.FAILED, trial.crash)
        elif trial.hangs:
            self._end(trial, Ended.FAILED, f"no progress for {trial.place.timeout:g} s")

    def _end(self, trial: RunningTrial, how: Ended, reason: str) -> None:
        number, run = trial.number, self._running.pop(trial)
        self._free.append(trial.place.gpu)
        if trial.scores:
            best = trial.best
            notes = {"error": best.error, "loss": best.loss, "epoch": best.epoch}
            for key, value in {**notes, "epochs": trial.scores[-1].epoch}.items():
                self.study.note_trial(number, key, value)
            run.log({"best_validation_error": best.error}, step=best.epoch)
        trial.close()
        if how is Ended.COMPLETE:
            self.study.complete(number, trial.best.objective)
        elif how is Ended.STOPPED:
            self.study.stop(number, reason)
        else:
            self.study.fail(number, reason)
        run.tag("prong.ended", f"{how}: {reason}" if reason else str(how))
        self.runs.end(run, "FAILED" if how is Ended.FAILED else "FINISHED")
        self._tell(number)

    def _tell(self, number: int) -> None:
        tried = counting(_tried(self.study))
        one = next(each for each in tried if each.number == number + 1)
        error = "" if one.error is None else f"error {one.error:.2f} %"
        what = error if one.ended is Ended.COMPLETE else f"{one.ended}: {one.reason}"
        complete = [each for each in tried if each.ended is Ended.COMPLETE]
        best = min(complete, key=rank) if complete else None
        so_far = "" if best is None else f"  best {best.error:.2f} % (trial {best.number})"
        count = f"{len(tried)}/{self.wanted.trials}"
        self.say(f"{count:>7}  trial {one.number}  {brief(one.values)}  {what}{so_far}")
        _stop_if_hopeless(tried)


def _stop_if_hopeless(tried: Sequence[Tried]) -> None:
    if len(tried) == _HOPELESS and all(one.ended is Ended.FAILED for one in tried):
        raise Failed(f"the first {_HOPELESS} trials crashed: {tried[-1].reason}")
