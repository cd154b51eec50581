"""What happens at each step of an optimizer that is attached to a whitened model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prong.refresh.changes import follow_changes
from prong.refresh.optimizers import GUARD, AttachedOptimizers, after_step, before_step
from prong.refresh.refresh_report import LayerReport, RefreshReport
from prong.refresh.rounds import Rounds
from prong.refresh.window import stop_gathering, unseen

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from prong.layers.base import Whitened
    from prong.refresh.narrow_layers import SmallLayers
    from prong.refresh.refresher import Refresher
    from prong.refresh.step_control import StepControl
    from prong.refresh.tied_layers import TiedLayers
    from prong.refresh.window import Gathering
    from prong.statistics.moments import GatheringStream


class Attached:
    """Counts the steps of a model's optimizers, works on their gradients, and reparametrises.

    Attributes:
        model: the whitened model, without wrappers.
        units: its whitened layers.
        optimizers: those that move its parameters.
        report: the last reparametrisation, or None.
        steps: how many optimizer steps were made.
        fallbacks: how many decompositions did not succeed at the first attempt, over the whole run.
    """

    model: nn.Module
    units: list[TiedLayers]
    optimizers: list[Optimizer]
    automatic: bool
    batches: Iterable[Any] | None
    gathering: Gathering
    control: StepControl
    small: SmallLayers
    diagonal: Callable[[Optimizer], None] | None
    _refresher: Refresher

    def _attach(self, attached: AttachedOptimizers) -> None:
        """Follow every step of the optimizers from now on."""
        self.steps = self.fallbacks = 0
        self.report: RefreshReport | None = None
        self._latest: RefreshReport | None = None
        self._stream: GatheringStream | None = None
        self._warned: set[str] = set()
        self._rounds = Rounds(self.optimizers)
        self._hooks: list[RemovableHandle] = []
        for each in self.optimizers:
            self._hooks.append(before_step(each, self._work_on_gradients))
            self._hooks.append(after_step(each, self._stepped))
        GUARD.watch(self, attached.levels, [unit.weight for unit in self.units])

    def step(self) -> RefreshReport | None:
        """Give the report of what was reparametrised since the last call; None if nothing was.

        Optimizer steps count themselves, so that a call too early, too often or never changes
        nothing. With `automatic=False` a call counts the optimizer step before it; one without an
        optimizer step since the last call counts nothing.
        """
        if self.automatic:
            report, self._latest = self._latest, None
            return report
        return self._count(set()) if self._rounds.take() else None

    def _stepped(self, optimizer: Optimizer) -> None:
        if not self.automatic:
            self._rounds.note(optimizer)
            return
        spent = self._rounds.made(optimizer)
        if spent is not None:
            self._latest = self._count(spent) or self._latest

    def _work_on_gradients(self, optimizer: Optimizer) -> None:
        follow_changes(self.units, self._refresher.optimizers, self.control, self.small)
        if self.diagonal is not None:
            self.diagonal(optimizer)
        known = [k for each in self.control.waiting(optimizer) for k in self.small.work(each)]
        self.control(optimizer, known)

    def _count(self, spent: set[int]) -> RefreshReport | None:
        self.steps += 1
        self.control.steps = self.steps
        self.small.settle()
        if self.gathering.active:
            self.gathering.steps += 1
            if self._stream is not None:
                # The side stream then never holds more than one step's work and memory.
                self._stream.join()
        report = None
        schedule = self.gathering.schedule
        due = [u for i, u in enumerate(self.units) if schedule.due(i, self.steps)]
        if due:
            report = self._refresh(due, spent)
            stop_gathering([layer for unit in due for layer in unit.layers])
        self.gathering.plan(self.steps)
        return report

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let forward passes in training mode pass uncounted, such as those of a teacher."""
        layers = self._layers()
        held = [layer.paused for layer in layers]
        for layer in layers:
            layer.paused = True
        try:
            yield
        finally:
            for layer, paused in zip(layers, held, strict=True):
                layer.paused = paused

    def refresh(self) -> RefreshReport:
        """Reparametrise now, from the statistics gathered so far (lines 6 to 11 of Algorithm 1)."""
        report = self._refresh(self.units, set(), early=True)
        self.gathering.stop()
        return report

    def _refresh(
        self, units: Sequence[TiedLayers], spent: set[int], *, early: bool = False
    ) -> RefreshReport:
        start = time.perf_counter()
        postponed: dict[str, LayerReport] = {}
        if self.batches is not None:
            self._refresher.collect(units, self.batches)
        else:
            if not early:
                postponed = self.gathering.too_few(units, self.steps)
            self.gathering.learn()
        ready = [unit for unit in units if unit.name not in postponed]
        layers, notes = self._refresher.gathered(ready, spent=spent)
        return self._finish(start, {**layers, **postponed}, notes)

    def gather_on(self, stream: GatheringStream | None) -> None:
        """Gather statistics on `stream` from now on; see `prong.extensions.side_stream`."""
        self._stream = stream
        for layer in self._layers():
            layer.side_stream = stream

    def detach(self) -> None:
        """Stop gathering and step control, and release the optimizer; the model stays whitened."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        GUARD.release(self)
        self.gathering.stop()
        self.small.release()
        self.gather_on(None)
        for layer in self._layers():
            layer.variances = layer.last_pass = None

    def _layers(self) -> list[Whitened]:
        return [layer for unit in self.units for layer in unit.layers]

    def _finish(
        self, start: float, layers: dict[str, LayerReport], notes: list[str]
    ) -> RefreshReport:
        report = RefreshReport(self.steps, time.perf_counter() - start, layers, tuple(notes))
        for warning in notes + unseen(self.units, layers, self.model.training):
            kind = warning.partition(":")[0]
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(warning, UserWarning, stacklevel=2)
        self.fallbacks += report.fallbacks
        self.report = report
        return report
