"""Projected Natural Gradient Descent: Algorithm 1 of the paper, around any optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.check import refuse_wrong
from prong.convert import LayerStatus, coverage, is_compiled
from prong.distributed.ranks import Ranks
from prong.extensions.batch_diagonal import BatchDiagonal
from prong.extensions.two_sided import observe_sampled, sampled_loss
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
from prong.refresh.attached import Attached
from prong.refresh.collect import Forward, default_forward
from prong.refresh.modes import chosen_mode, convert, refusal
from prong.refresh.narrow_layers import SmallLayers
from prong.refresh.optimizers import GUARD
from prong.refresh.refresher import Refresher, checked
from prong.refresh.saved_state import pack_state, unpack_state
from prong.refresh.schedule import Schedule
from prong.refresh.step_control import StepControl
from prong.refresh.window import Gathering

if TYPE_CHECKING:
    import torch.distributed as dist

    from prong.refresh.refresh_report import RefreshReport


class Reparametrizer(Attached):
    """Recomputes c and U of a whitened model every `period` steps, without changing its function.

    It follows the steps of the optimizer by itself; `step` gives the report. Statistics come from
    the forward passes of the last min(T, ⌈N_s/B⌉) training steps before a reparametrisation, where
    B is the number of examples of a step; a layer with few inputs uses fewer steps (see
    `prong.refresh.window`). This costs no extra pass, but unlike in line 8 of Algorithm 1 the
    parameters are up to that many steps old. Pass `batches` to compute the statistics with the
    present parameters instead.

    Attributes:
        report: the report of the last reparametrisation, or None.
        steps: number of optimizer steps so far.
        mode: how the layers run: "fold", "activations" or "preconditioned".
        preconditioned_refusal: why the layers cannot run preconditioned; empty if they can.
        fallbacks: number of decompositions so far whose first attempt failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
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
        automatic: bool = True,
        **old: object,
    ) -> None:
        """Attach to a whitened model and its optimizer.

        Args:
            model: the model that `whiten` returned; it may be wrapped by `torch.compile` or
                DistributedDataParallel.
            optimizer: the optimizer of its parameters, or several.
            period: T, optimizer steps between reparametrisations.
            samples: N_s, the largest number of examples of an estimate, over all ranks. A layer
                with N inputs uses at most 32 N samples, but at least 256 examples.
            damping: ε, added to the eigenvalues of the covariance, in its units.
            step_limit: ρ, the largest relative change of a layer's pre-activations by one gradient,
                η‖(g_V, g_d)‖ ≤ ρ‖V‖. Smaller steps are enlarged (see `prong.refresh.step_control`).
                None leaves the gradients unchanged. It is only used with `torch.optim.SGD`, because
                the steps of other optimizers are not η times the gradient.
            mode: how the layers run: "fold" forms W = V U in every forward pass, "activations"
                whitens the inputs where that is cheaper, "preconditioned" keeps W and d as
                parameters and puts the natural gradient into `.grad` (`torch.optim.SGD` only),
                "auto" is "preconditioned" where it is allowed, else "activations".
            whitening: how inputs are whitened.
            savings: savings of time and memory.
            two_sided: how back-propagated gradients are whitened; None for R = I.
            batches: data for the statistics, instead of the training batches. It is iterated anew
                at each reparametrisation.
            forward: how to run a batch of `batches` or `initialize`; by default `model(batch)`, or
                `model(batch[0])` for a sequence, or `model(**batch)` for a mapping.
            process_group: the ranks whose statistics are merged, and which share the
                decompositions; the default group if None.
            automatic: whether every step of the optimizer is counted by itself, also inside a
                closure's caller, a GradScaler or a framework. If not, call `step` after each.
            old: keywords of earlier versions; each raises an error that names its new place.

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
        self.model, attached, self.units = checked(model, optimizer)
        self.optimizers, self.automatic = attached.stepping, automatic
        if whitening.momentum == "reset":
            attached.refuse_reset()
        savings = savings.compiled() if is_compiled(model) else savings
        self._given = {
            "optimizer": optimizer,
            "period": period,
            "samples": samples,
            "damping": damping,
            "step_limit": step_limit,
            "whitening": whitening,
            "savings": savings,
            "two_sided": two_sided,
            "batches": batches,
            "forward": forward,
            "process_group": process_group,
            "automatic": automatic,
        }
        before = GUARD.owner_of([unit.weight for unit in self.units])
        if before is not None:
            before.detach()
        root_matters = not attached.plain_sgd
        self.settings = settings_of(
            whitening, savings, two_sided, float(damping), plain_sgd=not root_matters
        )
        self.period, self.samples = period, samples
        self.batches, self.forward = batches, forward
        self.ranks = Ranks(process_group)
        schedule = Schedule(period, len(self.units), bool(savings.spread), bool(savings.early))
        self.gathering = Gathering(
            self.units, schedule, samples, two_sided, self.ranks, from_training=batches is None
        )
        step_limit = step_limit if attached.steps_are_gradients else None
        self.control = StepControl(self.units, step_limit, self.optimizers, self.ranks)
        self.preconditioned_refusal = refusal(attached.levels, whitening.batch_diagonal, two_sided)
        self.small = SmallLayers(self.units, self.optimizers, alone=self.ranks.size == 1)
        self._refresher = Refresher(
            self.model,
            self.units,
            self.settings,
            self.ranks,
            attached.remembering,
            self.control,
            self.small,
            samples,
            forward,
        )
        self.convert(mode)
        for layer in self._layers():
            layer.moments = layer.backward_moments = layer.variances = layer.side_stream = None
            layer.positions = whitening.positions
            if two_sided is not None and layer.output_whitener is None:
                layer.start_two_sided()
        self.diagonal: BatchDiagonal | None = None
        if whitening.batch_diagonal:
            self.diagonal = BatchDiagonal(self.units, self.ranks)
            self._refresher.dampings = self.diagonal.damping
        self._attach(attached)
        self.gathering.plan(self.steps)

    @property
    def coverage(self) -> list[LayerStatus]:
        """Every module with parameters: whether it is whitened, or why not."""
        return coverage(self.model)

    def initialize(self, batches: Iterable[Any], init: str = "balanced") -> RefreshReport:
        """Reparametrise at t = 0, layer by layer in the order of the forward pass.

        "balanced" and "whitened" are for a network with new random weights; both change its
        function. Let s be the standard deviation of a layer's pre-activations over the batches. If
        s < ¼, "balanced" multiplies W by a gain so that s becomes √(s/4), the geometric mean of s
        and ¼. Signals then do not fade from layer to layer. The mean of the pre-activations becomes
        b. "whitened" takes the initial numbers of W as V (Fig. 3b), so the fan-in rule of the
        initialisation holds for whitened inputs. "preserve" keeps the function, as every later
        reparametrisation does; use it for a trained network.

        Args:
            batches: training data; the first batches that hold `samples` examples are used. With
                several ranks each passes its share of every batch, and all use the same number of
                batches, until together they hold `samples` or one rank has no more.
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
        """Gather statistics of δ for labels drawn from the model, for `TwoSided("sampled")`.

        Call it between the forward pass and the loss's backward pass, in the same step. It does
        nothing in steps without statistics, and never changes `.grad`.

        Args:
            outputs: logits or means that the model returned, with their graph.
            likelihood: "categorical", "bernoulli" or "gaussian"; see `sampled_loss`.

        Returns:
            Whether a backward pass was made.

        Raises:
            ValueError: if `two_sided` is not `TwoSided("sampled")`, or `likelihood` is unknown.
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
        """Return the state that a resumed run needs besides those of the model and the optimizer.

        `{"meta": plain numbers, "tensors": tensors by name}` can be stored as JSON and safetensors,
        without pickle. Φ is in the model's state dict, because c and U are buffers of the model.
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
        """Load a state of `state_dict`, after the states of the model and the optimizer.

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
        for layer in self._layers():
            layer.replaced = False  # the state knows the norms of what was loaded
        self.small.arrange()
        if self.diagonal is not None:
            self.diagonal.damping = self._refresher.dampings = dampings

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or a stored one, is made of: hooks are put in place anew."""
        return {
            "given": {**self._given, "mode": self.mode},
            "model": self.model,
            "state": self.state_dict(),
            "report": self.report,
            "latest": self._latest,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Attach to the copies of the model and the optimizer that were copied along."""
        self.__init__(state["model"], **state["given"])  # type: ignore[misc]
        self.load_state_dict(state["state"])
        self.report, self._latest = state["report"], state["latest"]

    def convert(self, mode: str) -> str:
        """Change the mode of all layers; function and momentum stay the same up to rounding.

        Args:
            mode: as in the constructor.

        Returns:
            The chosen mode. If "auto" is not preconditioned, `preconditioned_refusal` says why.

        Raises:
            ValueError: if `mode` is unknown or not allowed with this optimizer and these options.
        """
        self.mode = chosen_mode(mode, self.preconditioned_refusal)
        self.small.release()
        for unit in self.units:
            convert(unit, self.mode, self.optimizers)
        self.small.arrange()
        return self.mode
