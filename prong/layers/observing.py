"""How a layer takes statistics of its inputs, and of the gradients of its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from prong.layers.autograd import ObserveGradient

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from prong.statistics.moments import GatheringStream, Moments
    from prong.statistics.unit_variances import UnitVariances


def transforms_active() -> bool:
    """Whether a transform of `torch.func` (vmap, grad, jacrev) is running."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def refuse_transforms() -> None:
    """Refuse gradients of a preconditioned layer inside a transform of `torch.func`.

    Raises:
        RuntimeError: if one is running.
    """
    if transforms_active():
        raise RuntimeError(
            "torch.func over a preconditioned layer: its gradients are natural ones, not those of "
            "W. Call natural.convert('fold') for gradients of V and d, or use prong.fold(model)"
        )


class Observing(nn.Module):
    """A layer that adds what passes through it to its statistics, while they are gathered.

    Attributes:
        moments: statistics of the input, or None while none are gathered.
        backward_moments: statistics of the output's gradient, or None.
        gradients_wanted: whether to add gradients of the current backward pass.
        variances: this step's variances of the whitened units, for the per-batch D, or None.
        side_stream: the CUDA stream that gathers statistics, or None for the current stream.
        paused: whether forward passes are not counted, whatever they are.
        without_gradients: whether passes without gradients count too.
        seen: whether a pass was counted outside a backward pass since statistics began.
    """

    weight: nn.Parameter
    whitener: Tensor
    mean: Tensor
    moments: Moments | None
    backward_moments: Moments | None
    gradients_wanted: bool
    variances: UnitVariances | None
    side_stream: GatheringStream | None
    paused: bool
    without_gradients: bool
    seen: bool

    def follow_bias(self) -> None:
        """Bring c up to date with a bias that was frozen."""
        raise NotImplementedError

    def samples(self, input: Tensor) -> tuple[Float[Tensor, "groups samples in"], int]:
        """Return the samples of an input, and the number of its examples."""
        raise NotImplementedError

    def observe(self, input: Tensor) -> None:
        """Add the input to the statistics, if they are gathered now.

        Only forward passes in training mode count. Activation checkpointing runs the forward pass
        again during the backward pass; this second run is detected and not counted.
        """
        self.follow_bias()
        if self.moments is None and self.variances is None:
            return
        if not self.observes():
            return
        if input.layout is not torch.strided:
            input = input.to_dense()
        with torch.no_grad():
            samples, examples = self.samples(input)
            if self.moments is not None:
                self._add(self.moments, samples, examples, input)
            if self.variances is not None:
                self.variances.add(samples, self.mean, self.whitener)

    def observes(self) -> bool:
        """Return whether a forward pass is one that trains, for the first time.

        Passes without gradients do not train: those of a teacher, for pseudo labels, or that renew
        the running averages of BatchNorm.
        """
        if not self.training or not self.weight.requires_grad or self.paused:
            return False
        if not torch.is_grad_enabled():
            return self.without_gradients
        if torch.compiler.is_compiling():
            return True
        if transforms_active():
            return False
        if torch._C._current_graph_task_id() == -1:
            if not self.seen:
                self.seen = True
            return True
        # Checkpointing runs the pass again. With use_reentrant the first run had no gradients.
        return not self.seen

    def watched(self, output: Tensor) -> Tensor:
        """Return the output; its gradient is added to the statistics, if they are gathered now."""
        if self.backward_moments is None or not self.training or not output.requires_grad:
            return output
        if self.paused or transforms_active():
            return output
        watched: Tensor = ObserveGradient.apply(output, self)  # type: ignore[no-untyped-call]
        return watched

    def observe_gradient(self, gradient: Tensor) -> None:
        """Add δ to the statistics, the gradient of one example's loss at the output.

        `gradient` is that of a loss that is averaged over the batch, so it is multiplied by the
        number of examples.
        """
        if self.backward_moments is not None and self.gradients_wanted:
            samples, examples = self.gradient_samples(gradient)
            self._add(self.backward_moments, samples * examples, examples, gradient)

    def _add(self, moments: Moments, samples: Tensor, examples: int, source: Tensor) -> None:
        if self.side_stream is None or torch.compiler.is_compiling():
            moments.add(samples, examples)
        else:
            self.side_stream.add(moments, samples, examples, source)

    def gradient_samples(self, gradient: Tensor) -> tuple[Float[Tensor, "groups samples out"], int]:
        """Return the samples of an output's gradient, and the number of its examples."""
        raise NotImplementedError
