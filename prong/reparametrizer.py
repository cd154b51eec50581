"""Projected Natural Gradient Descent: Algorithm 1 of the paper, around anyone's optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.check import refuse_wrong
from prong.convert import LayerStatus, coverage, is_compiled
from prong.distributed.ranks import Ranks
from prong.extensions.batch_diagonal import BatchDiagonal
from prong.extensions.two_sided import observe_sampled, sampled_loss
from prong.layers.base import Whitened
from prong.options import (
    INITS,
    Savings,
    TwoSided,
    Whitening,
    check_group,
    check_name,
    check_numbers,
    refuse_old_keywords,
    settings_of,
)
from prong.refresh.collect import Forward, default_forward
from prong.refresh.modes import chosen_mode, convert, refusal
from prong.refresh.narrow_layers import SmallLayers
from prong.refresh.refresh_report import LayerReport, RefreshReport
from prong.refresh.refresher import Refresher, checked
from prong.refresh.saved_state import pack_state, unpack_state
from prong.refresh.schedule import Schedule
from prong.refresh.step_control import StepControl
from prong.refresh.step_hooks import before_step
from prong.refresh.tied_layers import TiedLayers
from prong.refresh.window import Gathering, stop_gathering

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.optim import Optimizer

    from prong.statistics.moments import GatheringStream


class Reparametrizer:
    """Keeps a whitened model white: every `period` steps, new c and U, the same function.

    Call `step` after every optimizer step. Statistics come from the forward passes of the last
    min(T, ⌈N_s/B⌉) training steps before a reparametrisation, B being the examples of a step, and
    of fewer for a layer with few inputs (see `prong.refresh.window`): the activations are those of
    parameters up to that many steps old, unlike line 8 of Algorithm 1, and cost no extra pass. Hand
    over `batches` to take them with the present parameters instead.

    Attributes:
        report: the last reparametrisation, or None.
        steps: how many optimizer steps were made.
        mode: how the layers run: "fold", "activations" or "preconditioned".
        preconditioned_refusal: why they cannot run preconditioned; empty if they can.
        fallbacks: how many decompositions did not succeed at the first attempt, over the whole run.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        period: int = 100,
        samples: int = 1000,
        damping: float = 0.1,
        step_limit: float | None = 0.003,
        mode: str = "auto",
        whitening: Whitening | None = None,
        savings: Savings | None = None,
        two_sided: TwoSided | None = None,
        batches: Iterable[Any] | None = None,
        forward: Forward = default_forward,
        process_group: dist.ProcessGroup | None = None,
        **old: object,
    ) -> None:
        """Attach to a whitened model and its optimizer.

        Args:
            model: what `whiten` returned, also wrapped by `torch.compile` or
                DistributedDataParallel.
            optimizer: the optimizer of its parameters, or several.
            period: T, optimizer steps between reparametrisations.
            samples: N_s, the most examples behind an estimate, over all ranks. A layer with N
                inputs takes no more than hold 32 N samples, but 256 examples at least.
            damping: ε, added to the eigenvalues of the covariance, in its units.
            step_limit: ρ, the share by which one gradient may change a layer's pre-activations,
                η‖(g_V, g_d)‖ ≤ ρ‖V‖; steps below it grow by a power of their share of it (see
                `prong.refresh.step_control`). None leaves gradients as they are. Only for
                `torch.optim.SGD`: the steps of other optimizers are not η times the gradient.
            mode: how the layers run: "fold" forms W = V U in every forward pass, "activations"
                whitens the inputs where that is cheaper, "preconditioned" keeps W and d as
                parameters and puts the natural gradient into `.grad` (`torch.optim.SGD` only),
                "auto" is preconditioned where it is allowed and activations elsewhere.
            whitening: how inputs are whitened.
            savings: what is spared.
            two_sided: how the back-propagated gradients are whitened too; None for R = I.
            batches: where statistics come from at each reparametrisation, iterated anew each time,
                instead of the training batches.
            forward: how to run a batch of `batches` or `initialize`; by default `model(batch)`, or
                `model(batch[0])` for a sequence, or `model(**batch)` for a mapping.
            process_group: the ranks whose statistics are merged, and which share the
                decompositions; the default group if None.
            old: names of before; each is refused with its new place.

        Raises:
            TypeError: if an argument has the wrong type, or is unknown.
            ValueError: if an argument is out of range, the model is not whitened, a whitened layer
                is sharded, or the optimizer holds none of the whitened weights.
        """
        refuse_old_keywords(old)
        check_numbers(period=period, samples=samples, damping=damping, step_limit=step_limit)
        whitening = check_group("whitening", whitening, Whitening, "kind") or Whitening()
        savings = check_group("savings", savings, Savings, "leading") or Savings()
        two_sided = check_group("two_sided", two_sided, TwoSided, "statistics")
        self.model, self.optimizers, self.units = checked(model, optimizer)
        plain_sgd = all(type(each) is torch.optim.SGD for each in self.optimizers)
        savings = savings.compiled() if is_compiled(model) else savings
        self.settings = settings_of(whitening, savings, two_sided, float(damping), plain_sgd)
        self.period, self.samples = period, samples
        self.batches, self.forward = batches, forward
        self.ranks = Ranks(process_group)
        schedule = Schedule(period, len(self.units), bool(savings.spread), bool(savings.early))
        self.gathering = Gathering(
            self.units, schedule, samples, two_sided, self.ranks, from_training=batches is None
        )
        step_limit = step_limit if plain_sgd else None
        self.control = StepControl(self.units, step_limit, self.optimizers, self.ranks)
        self.preconditioned_refusal = refusal(self.optimizers, whitening.batch_diagonal, two_sided)
        self.small = SmallLayers(self.units, self.optimizers, alone=self.ranks.size == 1)
        self._refresher = Refresher(
            self.model,
            self.units,
            self.settings,
            self.ranks,
            self.optimizers,
            self.control,
            self.small,
            samples,
            forward,
        )
        self.convert(mode)
        self.report: RefreshReport | None = None
        self.steps = self.fallbacks = 0
        self._stream: GatheringStream | None = None
        for layer in self._layers():
            layer.moments = layer.backward_moments = layer.variances = layer.side_stream = None
            layer.positions = whitening.positions
            if two_sided is not None and layer.output_whitener is None:
                layer.start_two_sided()
        self.diagonal: BatchDiagonal | None = None
        if whitening.batch_diagonal:
            self.diagonal = BatchDiagonal(self.units, self.ranks)
            self._refresher.dampings = self.diagonal.damping
        self._hooks = [before_step(each, self._work_on_gradients) for each in self.optimizers]
        self.gathering.plan(self.steps)

    @property
    def coverage(self) -> list[LayerStatus]:
        """Every module with parameters: whitened, or plain and why."""
        return coverage(self.model)

    def step(self) -> RefreshReport | None:
        """Count one optimizer step; reparametrise after every `period` of them.

        Returns:
            The report of the reparametrisation, of the layers that were due; None if none was.
        """
        self.steps += 1
        self.control.steps = self.steps
        self.small.settle()
        if self.gathering.active:
            self.gathering.steps += 1
            if self._stream is not None:
                # So that what waits there, and its memory, is never more than one step's.
                self._stream.join()
        report = None
        schedule = self.gathering.schedule
        due = [u for i, u in enumerate(self.units) if schedule.due(i, self.steps)]
        if due:
            report = self._refresh(due)
            stop_gathering([layer for unit in due for layer in unit.layers])
        self.gathering.plan(self.steps)
        return report

    def _work_on_gradients(self, optimizer: Optimizer) -> None:
        if self.diagonal is not None:
            self.diagonal(optimizer)
        self.control(optimizer, self.small.work(optimizer))

    def refresh(self) -> RefreshReport:
        """Reparametrise now, from the statistics gathered so far (lines 6 to 11 of Algorithm 1)."""
        report = self._refresh(self.units)
        self.gathering.stop()
        return report

    def _refresh(self, units: Sequence[TiedLayers]) -> RefreshReport:
        start = time.perf_counter()
        if self.batches is not None:
            self._refresher.collect(units, self.batches)
        else:
            self.gathering.learn()
        return self._finish(start, *self._refresher.gathered(units))

    def initialize(self, batches: Iterable[Any], init: str = "balanced") -> RefreshReport:
        """Reparametrise at t = 0, layer by layer in the order of the forward pass.

        For a network whose weights were just drawn. Where the standard deviation s of a layer's
        pre-activations over the batches is less than ¼, "balanced" multiplies W by the gain that
        makes it √(s/4), half way to ¼ in logarithms: signals that would fade from layer to layer do
        not, and others stay as they were drawn. The mean of the pre-activations becomes b.
        "whitened" takes the numbers that initialised W as V (Fig. 3b): the initialisation's fan-in
        law then holds for whitened inputs. Both change the function: for a network that is trained
        already there is "preserve", which keeps it, as every later reparametrisation does.

        Args:
            batches: training data; as many batches are used as hold `samples` examples. Under
                several ranks each hands over its share of every batch, and all take equally many,
                until they hold `samples` together or one has no more.
            init: "balanced", "whitened" or "preserve".

        Returns:
            The report of the reparametrisation.

        Raises:
            ValueError: if `init` is unknown, some rank has no batch, or `prong.check` finds on the
                first one that the model would not keep its function; nothing is changed then.
        """
        check_name("init", init, INITS)
        start = time.perf_counter()
        taken = self._refresher.first(batches)
        refuse_wrong(self.model, taken[0], self.forward, self.ranks)
        found = self._refresher.initialized(taken, init)
        self.gathering.stop()
        self.gathering.plan(self.steps)
        return self._finish(start, *found)

    def sample_fisher(self, outputs: torch.Tensor, likelihood: str = "categorical") -> bool:
        """Take δ's statistics under the model's own predictions, for `TwoSided("sampled")`.

        Call it between the forward pass and the loss's backward pass, in the same step. It does
        nothing in steps that are not sampled, and never touches `.grad`.

        Args:
            outputs: logits or means that the model gave, with their graph.
            likelihood: "categorical", "bernoulli" or "gaussian"; see `sampled_loss`.

        Returns:
            Whether a backward pass was made.

        Raises:
            ValueError: if no sampled statistics are wanted, or `likelihood` is unknown.
        """
        two_sided = self.settings.two_sided
        if two_sided is None or two_sided.statistics != "sampled":
            raise ValueError(f"two_sided={two_sided}: TwoSided('sampled') is needed here")
        layers = [layer for layer in self._layers() if layer.backward_moments is not None]
        if not layers:
            return False
        weights = [unit.weight for unit in self.units if unit.weight.requires_grad]
        observe_sampled(layers, sampled_loss(outputs, likelihood), weights)
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's own state.

        `{"meta": plain numbers, "tensors": tensors by name}`: JSON and safetensors hold it without
        pickle. Φ is not in it: c and U are buffers of the model and come with its state dict.
        """
        self.small.settle()
        return pack_state(
            self.units,
            self.gathering,
            self.control,
            None if self.diagonal is None else self.diagonal.damping,
            {"steps": self.steps, "fallbacks": self.fallbacks},
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, after the model and the optimizer took over theirs.

        Raises:
            ValueError: if the state is of another version or of another model.
        """
        two_sided = self.settings.two_sided
        counts, dampings = unpack_state(
            state,
            self.units,
            self.gathering,
            self.control,
            empirical=two_sided is not None and two_sided.statistics == "empirical",
        )
        self.steps, self.fallbacks = counts["steps"], counts["fallbacks"]
        self.small.arrange()
        if self.diagonal is not None:
            self.diagonal.damping = self._refresher.dampings = dampings

    def convert(self, mode: str) -> str:
        """Let every whitened layer run in another mode; function and momentum stay, to rounding.

        Args:
            mode: as in the constructor.

        Returns:
            The mode that is run. `preconditioned_refusal` says why "auto" is not preconditioned.

        Raises:
            ValueError: if `mode` is unknown or not allowed with this optimizer and these options.
        """
        self.mode = chosen_mode(mode, self.preconditioned_refusal)
        self.small.release()
        for unit in self.units:
            convert(unit, self.mode, self.optimizers)
        self.small.arrange()
        return self.mode

    def gather_on(self, stream: GatheringStream | None) -> None:
        """Take statistics there from now on; see `prong.extensions.side_stream`."""
        self._stream = stream
        for layer in self._layers():
            layer.side_stream = stream

    def detach(self) -> None:
        """Stop gathering and clipping, and let go of the optimizer; the model stays whitened."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
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
        self.fallbacks += report.fallbacks
        self.report = report
        return report
