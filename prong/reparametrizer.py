"""Projected Natural Gradient Descent: Algorithm 1 of the paper, around anyone's optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prong.agreement import Refresh, assignment
from prong.arguments import check_held, check_positive, optimizers_of
from prong.backward import sampled_loss
from prong.convert import LayerStatus, coverage, is_compiled, unwrap
from prong.diagonal import BatchDiagonal
from prong.gathering import (
    Forward,
    call_order,
    default_forward,
    enough,
    gather,
)
from prong.modes import chosen_mode, convert, refusal
from prong.ranks import Ranks
from prong.refresh import INITS, Whitening
from prong.report import LayerReport, RefreshReport
from prong.schedule import Schedule
from prong.sharding import refuse_flat, refuse_shards
from prong.side_stream import SideStream
from prong.small import SmallLayers
from prong.state import pack_moments, unpack_moments
from prong.step_control import StepControl
from prong.units import Unit, units_of
from prong.whitened import Whitened
from prong.window import BatchesSeen, batches_seen, start_gathering, stop_gathering

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch.optim import Optimizer


class Reparametrizer:
    """Keeps a whitened model white: every `period` steps, new c and U, the same function.

    Call `step` after every optimizer step. Statistics come from the forward passes of the last
    min(T, ⌈N_s/B⌉) training steps before a reparametrisation, B being the examples of a step, and
    of fewer for a layer with few inputs (see `prong.window`): the activations are those of
    parameters up to that many steps old, unlike line 8 of Algorithm 1, and cost no extra pass. Hand
    over `batches` to take them with the present parameters instead.

    Attributes:
        report: the last reparametrisation, or None.
        steps: how many optimizer steps were made.
        mode: how the layers run: "fold", "activations" or "canonical".
        canonical_refusal: why they cannot run canonically; empty if they can.
        fallbacks: how many decompositions did not succeed at the first attempt, over the whole run.
        skipped: how many decompositions were skipped because the old U still fitted, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        period: int = 100,
        samples: int = 1000,
        damping: float = 0.1,
        relative: bool = False,
        root: str = "auto",
        whitening: str = "full",
        momentum: str = "gradient",
        step_limit: float | None = 0.003,
        batch_diagonal: bool = False,
        two_sided: str | None = None,
        output_damping: float = 0.1,
        output_normalized: bool = True,
        positions: int | None = 64,
        precision: torch.dtype = torch.float32,
        batches: Iterable[Any] | None = None,
        forward: Forward = default_forward,
        process_group: dist.ProcessGroup | None = None,
        mode: str = "auto",
        spread: bool = True,
        early: bool = True,
        leading: float | None = 0.3,
        refit: float | None = None,
        side_stream: bool = False,
    ) -> None:
        """Attach to a whitened model and its optimizer.

        Args:
            model: what `whiten` returned, also wrapped by `torch.compile` or
                DistributedDataParallel.
            optimizer: the optimizer of its parameters, or several.
            period: T, optimizer steps between reparametrisations.
            samples: N_s, the most examples behind an estimate, over all ranks. A layer with N
                inputs takes no more than hold 32 N samples, but 256 examples at least.
            damping: ε, added to the eigenvalues of the covariance: in its units, or with `relative`
                in units of the mean eigenvalue.
            relative: whether `damping` is relative.
            root: "pca" (Eq. 7), "zca", "cholesky", "newton-schulz"; "auto" is "cholesky" for
                `torch.optim.SGD`, whose path does not depend on the root, "zca" for every other
                optimizer, and "pca" with `batch_diagonal`.
            whitening: "full"; "diagonal" divides by standard deviations only, "centring" sets U = I
                (section 3.4).
            momentum: "gradient" or "velocity" carry the optimizer's momentum into the new basis;
                "reset" starts over as the paper does.
            step_limit: ρ, the share by which one gradient may change a layer's pre-activations,
                η‖(g_V, g_d)‖ ≤ ρ‖V‖; steps below it grow by a power of their share of it (see
                `prong.step_control`). None leaves gradients as they are. Only for
                `torch.optim.SGD`: the steps of other optimizers are not η times the gradient.
            batch_diagonal: whether the per-batch diagonal D of section 3.2 is applied at every
                step.
            two_sided: "empirical" or "sampled" whitens the back-propagated gradients too, W = Rᵀ V
                U (footnote 4); "sampled" needs a call of `sample_fisher` at every step. None for R
                = I.
            output_damping: γ, in units of the mean eigenvalue of E[δδᵀ].
            output_normalized: whether R is scaled to mean eigenvalue 1 of RᵀR. The learning rate
                then keeps its meaning, and neither loss scaling nor the loss's reduction matters.
            positions: at most this many pixels or tokens of an example are samples; None for all.
            precision: type of the first attempt at a decomposition, or a layer's own where that is
                wider; float64 is the second.
            batches: where statistics come from at each reparametrisation, iterated anew each time,
                instead of the training batches.
            forward: how to run a batch of `batches` or `initialize`; by default `model(batch)`, or
                `model(batch[0])` for a sequence, or `model(**batch)` for a mapping.
            process_group: the ranks whose statistics are merged, and which share the
                decompositions; the default group if None.
            mode: how the layers run: "fold" forms W = V U in every forward pass, "activations"
                whitens the inputs where that is cheaper, "canonical" keeps W and d as parameters
                and puts the natural gradient into `.grad` (`torch.optim.SGD` only), "auto" is
                canonical where it is allowed and activations elsewhere.
            spread: whether the layers take turns over the T steps of a period instead of being
                reparametrised all at once: each still every T steps, from the steps just before,
                so no step stalls and few statistics are held at a time. A model that was compiled
                before is always reparametrised at once, and with a whole P (`leading`): every turn
                would be one more graph.
            early: whether all layers are reparametrised at steps 10, 20, 40, 80 … of the first
                period as well, while the first statistics age fastest.
            leading: in canonical layers, P is made of those directions of Σ alone whose eigenvalues
                exceed this share of ε, where that is cheaper; None for the whole P. Without effect
                in other modes.
            refit: a new U is looked for only where the old one leaves a whitening error
                ‖C − I‖_F/√in above this about the new mean; c is renewed always, and
                `RefreshReport.skipped` counts. None to look for one every time.
            side_stream: whether the statistics are taken on a CUDA stream of their own, beside the
                forward and the backward pass, each step's until `step`. They are the same numbers.
                Without effect on other devices, under `torch.compile`, and in a captured CUDA
                graph. Off by default: what it gains has not been measured.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if an argument is out of range, the model is not whitened, a whitened layer
                is sharded, or the optimizer holds none of the whitened weights.
        """
        check_positive("period", period, int)
        check_positive("samples", samples, int)
        check_positive("damping", damping, float)
        check_positive("output_damping", output_damping, float)
        if step_limit is not None:
            check_positive("step_limit", step_limit, float)
        if leading is not None:
            check_positive("leading", leading, float)
        if refit is not None:
            check_positive("refit", refit, float)
        if positions is not None:
            check_positive("positions", positions, int)
        self.model = unwrap(model)
        self.optimizers = optimizers_of(optimizer)
        refuse_flat(self.model)
        self.units = units_of(self.model)
        refuse_shards(
            (f"{layer_name}.{own}", parameter)
            for layer_name, layer in self.model.named_modules()
            if isinstance(layer, Whitened)
            for own, parameter in layer.named_parameters(recurse=False)
        )
        check_held(self.optimizers, self.units)
        plain_sgd = all(type(each) is torch.optim.SGD for each in self.optimizers)
        if root == "auto":
            # D acts on single whitened units, so it matters which they are; the path of SGD does
            # not depend on them. Of the others the symmetric root generalises best.
            root = "pca" if batch_diagonal else "cholesky" if plain_sgd else "zca"
        if is_compiled(model):
            # Every turn, and every other number of directions, would be one more graph.
            spread, leading = False, None
        self.whitening = Whitening(
            kind=whitening,
            root=root,
            damping=float(damping),
            relative=bool(relative),
            precision=precision,
            momentum=momentum,
            two_sided=two_sided,
            output_damping=float(output_damping),
            output_normalized=bool(output_normalized),
            leading=leading if whitening == "full" else None,
            refit=refit,
        )
        self.period, self.samples = period, samples
        self.batches, self.forward = batches, forward
        self.schedule = Schedule(period, len(self.units), bool(spread), bool(early))
        self.side_stream = SideStream() if side_stream else None
        self.ranks = Ranks(process_group)
        limit = step_limit if plain_sgd else None
        self.control = StepControl(self.units, limit, self.optimizers, self.ranks)
        self.canonical_refusal = refusal(self.optimizers, batch_diagonal, two_sided)
        self.small = SmallLayers(self.units, self.optimizers, alone=self.ranks.size == 1)
        self.convert(mode)
        self.report: RefreshReport | None = None
        self.steps = 0
        self.fallbacks = self.skipped = 0
        self._batches_seen: BatchesSeen | None = None
        self._gathered = 0
        for layer in self._layers():
            layer.moments = layer.backward_moments = layer.variances = None
            layer.positions, layer.side_stream = positions, self.side_stream
            if two_sided is not None and layer.output_whitener is None:
                layer.start_two_sided()
        self.diagonal: BatchDiagonal | None = None
        self._hooks = []
        if batch_diagonal:
            self.diagonal = BatchDiagonal(self.units, self.ranks, momentum == "velocity")
        self._hooks += [o.register_step_pre_hook(self._before_step) for o in self.optimizers]
        self._schedule()

    @property
    def coverage(self) -> list[LayerStatus]:
        """Every module with parameters: whitened, or canonical and why."""
        return coverage(self.model)

    def step(self) -> RefreshReport | None:
        """Count one optimizer step; reparametrise after every `period` of them.

        Returns:
            The report of the reparametrisation, of the layers whose turn it was, or None if it was
            nobody's.
        """
        self.steps += 1
        self.control.steps = self.steps
        self.small.settle()
        if self._gathering:
            self._gathered += 1
            if self.side_stream is not None:
                # So that what waits there, and its memory, is never more than one step's.
                self.side_stream.join()
        report = None
        due = [u for i, u in enumerate(self.units) if self.schedule.due(i, self.steps)]
        if due:
            report = self._refresh(due)
            stop_gathering([layer for unit in due for layer in unit.layers])
        self._schedule()
        return report

    def _before_step(
        self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Work on the gradients of a step: now, or after the closure that will compute them."""
        # torch hands over the optimizer as the first of the arguments.
        closure = arguments[1] if len(arguments) > 1 else keywords.get("closure")
        if closure is None:
            self._work_on_gradients(optimizer)
            return None

        def closed(*given: Any) -> Any:
            loss = closure(*given)
            self._work_on_gradients(optimizer)
            return loss

        if len(arguments) > 1:
            return (arguments[0], closed, *arguments[2:]), keywords
        return arguments, {**keywords, "closure": closed}

    def _work_on_gradients(self, optimizer: Optimizer) -> None:
        if self.diagonal is not None:
            self.diagonal(optimizer)
        self.control(optimizer, self.small.work(optimizer))

    def refresh(self) -> RefreshReport:
        """Reparametrise now, from the statistics gathered so far (lines 6 to 11 of Algorithm 1)."""
        report = self._refresh(self.units)
        self._stop_gathering()
        return report

    def _refresh(self, units: Sequence[Unit]) -> RefreshReport:
        start = time.perf_counter()
        trainable = [layer for u in units if u.weight.requires_grad for layer in u.layers]
        if self.batches is not None:
            gather(self.model, trainable, self._kept(self.batches), self.forward)
        elif self._gathered and self._batches_seen is None:
            self._learn_batch_size()
        return self._finish(start, *self._reparametrised(units))

    def initialize(self, batches: Iterable[Any], init: str = "balanced") -> RefreshReport:
        """Reparametrise at t = 0, layer by layer in the order of the forward pass.

        For a network whose weights were just drawn. Where the standard deviation s of a layer's
        pre-activations over the batches is less than ¼, "balanced" multiplies W by the gain that
        makes it √(s/4), half way to ¼ in logarithms: signals that would fade from layer to layer do
        not, and others stay as they were drawn. The mean of the pre-activations becomes b.
        "whitened" takes the numbers that initialised W as V (Fig. 3b): the initialisation's fan-in
        law then holds for whitened inputs. "scaled" multiplies V by √(in / d_eff) besides, because
        E‖U(h − c)‖² is d_eff = Σ λ/(λ + ε) and not `in`. All three change the function: for a
        network that is trained already there is "preserve", which keeps it, as every later
        reparametrisation does.

        Args:
            batches: training data; as many batches are used as hold `samples` examples. Under
                several ranks each hands over its share of every batch, and all take equally many,
                until they hold `samples` together or one has no more.
            init: "balanced", "whitened", "scaled" or "preserve".

        Returns:
            The report of the reparametrisation.

        Raises:
            ValueError: if `init` is unknown, or some rank has no batch.
        """
        if init not in INITS:
            raise ValueError(f"init={init!r}: allowed are {', '.join(INITS)}")
        start = time.perf_counter()
        kept = self._kept(batches)
        layers: dict[str, LayerReport] = {}
        notes: list[str] = []
        if init == "preserve":
            gather(self.model, self._trainable(), kept, self.forward)
            layers, notes = self._reparametrised(self.units)
        else:
            place = self._call_order(kept[0])
            for unit in sorted(self.units, key=lambda u: min(place[layer] for layer in u.layers)):
                wanted = [layer for layer in unit.layers if place[layer] < len(place)]
                if wanted and unit.weight.requires_grad:
                    gather(self.model, wanted, kept, self.forward, only_these=True)
                found, lost = self._reparametrised([unit], init)
                layers.update(found)
                notes += lost
        self._stop_gathering()
        self._schedule()
        return self._finish(start, layers, notes)

    def sample_fisher(self, outputs: torch.Tensor, likelihood: str = "categorical") -> bool:
        """Take δ's statistics under the model's own predictions, for `two_sided="sampled"`.

        Call it between the forward pass and the loss's backward pass, in the same step. It does
        nothing in steps that are not sampled, and never touches `.grad`.

        Args:
            outputs: logits or means that the model gave, with their graph.
            likelihood: "categorical", "bernoulli" or "gaussian"; see `sampled_loss`.

        Returns:
            Whether a backward pass was made.

        Raises:
            ValueError: if `two_sided` is not "sampled", or `likelihood` is unknown.
        """
        if self.whitening.two_sided != "sampled":
            raise ValueError(f"two_sided={self.whitening.two_sided!r}: 'sampled' is needed here")
        layers = [layer for layer in self._layers() if layer.backward_moments is not None]
        if not layers:
            return False
        loss = sampled_loss(outputs, likelihood)
        weights = [unit.weight for unit in self.units if unit.weight.requires_grad]
        for layer in layers:
            layer.gradients_wanted = True
        try:
            torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        finally:
            for layer in layers:
                layer.gradients_wanted = False
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's own state.

        Returns:
            `{"meta": plain numbers, "tensors": tensors by name}`: JSON and safetensors hold it
            without pickle. Φ is not in it: c and U are buffers of the model and come with its state
            dict.
        """
        self.small.settle()
        tensors = pack_moments(self._owners())
        if self.diagonal is not None:
            for name, damping in self.diagonal.damping.items():
                tensors[f"{name}.damping"] = damping.clone()
        meta = {
            "version": 1,
            "steps": self.steps,
            "gathered": self._gathered,
            "batches_seen": None if self._batches_seen is None else vars(self._batches_seen),
            "fallbacks": self.fallbacks,
            "skipped": self.skipped,
            "control": self.control.state(),
        }
        for name, norm in self.control.norms.items():
            tensors[f"{name}.weight_norm"] = norm.clone()
        return {"meta": meta, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, after the model and the optimizer took over theirs.

        Raises:
            ValueError: if the state is of another version or of another model.
        """
        meta, tensors = state["meta"], state["tensors"]
        if meta.get("version") != 1:
            raise ValueError(f"state: version {meta.get('version')!r}; allowed is 1")
        dampings = {f"{unit.name}.damping": unit.name for unit in self.units}
        norms = {f"{unit.name}.weight_norm": unit for unit in self.units}
        others = {*dampings, *norms}
        moments = {name: value for name, value in tensors.items() if name not in others}
        empirical = self.whitening.two_sided == "empirical"
        unpack_moments(self._owners(), moments, gradients_wanted=empirical)
        self.steps, self.fallbacks = int(meta["steps"]), int(meta["fallbacks"])
        self.skipped = int(meta.get("skipped", 0))
        seen = meta.get("batches_seen")
        self._batches_seen = None if seen is None else BatchesSeen(**seen)
        self._gathered = int(meta["gathered"])
        self.small.arrange()
        self.control.steps = self.steps
        self.control.load(meta.get("control", {}))
        self.control.forget()
        for name, unit in norms.items():
            if name in tensors:
                self.control.measured(unit, tensors[name].to(unit.weight.device, copy=True))
        if self.diagonal is not None:
            device = self.units[0].weight.device
            self.diagonal.damping = {
                dampings[name]: value.to(device, copy=True)
                for name, value in tensors.items()
                if name in dampings
            }

    def convert(self, mode: str) -> str:
        """Let every whitened layer run in another mode; function and momentum stay, to rounding.

        Args:
            mode: as in the constructor.

        Returns:
            The mode that is run. `canonical_refusal` says why "auto" is not canonical.

        Raises:
            ValueError: if `mode` is unknown or not allowed with this optimizer and these options.
        """
        self.mode = chosen_mode(mode, self.canonical_refusal)
        self.small.release()
        for unit in self.units:
            convert(unit, self.mode, self.optimizers)
        self.small.arrange()
        return self.mode

    def detach(self) -> None:
        """Stop gathering and clipping, and let go of the optimizer; the model stays whitened."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._stop_gathering()
        self.small.release()
        for layer in self._layers():
            layer.variances = layer.last_pass = layer.side_stream = None

    def _layers(self) -> list[Whitened]:
        return [layer for unit in self.units for layer in unit.layers]

    def _owners(self) -> dict[str, Whitened]:
        """Layers by a name that is unique also where several share a weight."""
        return {f"{u.name}.{i}": layer for u in self.units for i, layer in enumerate(u.layers)}

    def _trainable(self) -> list[Whitened]:
        """Layers whose statistics are wanted; a frozen layer keeps its Φ."""
        return [u_layer for u in self.units if u.weight.requires_grad for u_layer in u.layers]

    @property
    def _gathering(self) -> bool:
        return any(layer.moments is not None for layer in self._layers())

    def _schedule(self) -> None:
        """Turn the gathering on or off for the next step."""
        if self.batches is not None:
            return
        if self._batches_seen is None and self._gathered:
            self._learn_batch_size()
        if not self._gathering:
            self._gathered = 0
        for index, unit in enumerate(self.units):
            wanted = self.schedule.remaining(index, self.steps) <= self.window(unit)
            held = any(layer.moments is not None for layer in unit.layers)
            if wanted and not held and unit.weight.requires_grad:
                start_gathering(unit.layers, self.whitening.two_sided)
            elif held and not wanted:
                stop_gathering(unit.layers)

    def _stop_gathering(self) -> None:
        stop_gathering(self._layers())
        self._gathered = 0

    def window(self, unit: Unit) -> int:
        """How many steps before a unit's reparametrisation are sampled; T while B is unknown."""
        if self._batches_seen is None:
            return self.period
        return self._batches_seen.window(unit, self.samples, self.period)

    def _learn_batch_size(self) -> None:
        self._batches_seen = batches_seen(self.units, self.ranks, self._gathered)

    def _kept(self, batches: Iterable[Any]) -> list[Any]:
        return enough(batches, self.samples, self.units[0].weight.device, self.ranks)

    def _call_order(self, batch: Any) -> dict[Whitened, int]:
        """Each layer's place in a forward pass of the first rank; their number if never called."""
        layers = self._layers()
        order = call_order(self.model, layers, batch, self.forward)
        places = [order.index(layer) if layer in order else len(layers) for layer in layers]
        agreed = torch.tensor(places, device=self.units[0].weight.device)
        self.ranks.broadcast_([agreed])
        return dict(zip(layers, agreed.tolist(), strict=True))

    def _reparametrised(
        self, units: Sequence[Unit], init: str = "preserve"
    ) -> tuple[dict[str, LayerReport], list[str]]:
        refresh = Refresh(
            self.whitening, self.ranks, self.optimizers, self.diagonal, self.control, init
        )
        # Over all units also where a few are due: layers that take turns share out the period.
        owners = assignment(self.units, self.whitening, self.ranks.size)
        self.small.settle()
        found = refresh(units, owners, self.units)
        self.small.updated(units)
        return found

    def _finish(
        self, start: float, layers: dict[str, LayerReport], notes: list[str]
    ) -> RefreshReport:
        report = RefreshReport(self.steps, time.perf_counter() - start, layers, tuple(notes))
        self.fallbacks += report.fallbacks
        self.skipped += report.skipped
        self.report = report
        return report
