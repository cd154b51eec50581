"""Whitened layers: the building block of Eq. 6, h_i = f_i(V_i U_{i−1} (h_{i−1} − c_{i−1}) + d_i).

A whitened layer is the object of the plain layer with another class: it keeps the Parameter
objects, hooks, attributes and device, and gets Φ as buffers. `weight` and `bias` now hold V and d,
which the optimizer trains; c and U change only in a reparametrisation. The forward pass first
folds, W = V U and b = d − W c, and then runs the plain layer on (W, b); autograd gives the
gradients of V and d. This is exact for every stride, dilation and padding mode. It is exact with
zero padding too, where subtracting c from the padded input would put −c at the border.

A layer without a bias cannot take up −W c. It keeps c = 0 and is whitened by the uncentred second
moment E[hhᵀ], which is the paper's Σ. The same holds for a transposed convolution: the number of
taps that reach a pixel depends on the pixel, so W c is not constant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from prong.layers.autograd import GradientFactors, NaturalGradient, plain_bias
from prong.layers.observing import Observing, refuse_transforms, transforms_active
from prong.layers.saved_layer import BIAS, WEIGHT, identity_phi, read_canonical, write_canonical
from prong.linalg.dtypes import product_dtype
from prong.linalg.layout import from_grouped, to_grouped
from prong.linalg.preconditioner import Dense, Preconditioner, preconditioner_of
from prong.linalg.projection import Phi, to_canonical
from prong.linalg.roots import root_of_preconditioner
from prong.statistics.unit_variances import UnitVariances

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from prong.layers.aside import Aside


class Whitened(Observing):
    """Base class of all whitened layers: it holds Φ, folds, and gathers statistics.

    Attributes:
        weight: V, in the shape of the plain layer's weight; W in a preconditioned layer.
        bias: d, `[out]`, or None.
        whitener: U, `[groups, in/groups, in/groups]`, one whitened unit per row. It is float32 or
            wider, also in a model of a narrower type. None in a preconditioned layer.
        mean: c, `[groups, in/groups]`, in the type of U.
        output_whitener: R of two-sided whitening, `[groups, out/groups, out/groups]`, or None.
        precision_matrix: P = UᵀU of a preconditioned layer, in the shape of U; None in others. With
            leading directions only, F `[groups, in/groups, k]` with P = (I − F Fᵀ)/ε.
        precision_damping: ε of the leading directions, `[groups]`; None if `precision_matrix` is P.
        last_pass: norm that a preconditioned layer stores for the step control, or None.
        aside: stored inputs of a narrow preconditioned layer that is processed together with
            others, or None for a layer that runs by itself.
        activations: whether the layer whitens inputs instead of folding weights, where it can.
        positions: the largest number of pixels or tokens of an example that become samples; None
            for all.
        uncentred: whether c was set to 0 because the bias is frozen.
        dropped_centre: c that was taken out since the last step, or None.
        replaced: whether parameters or Φ were loaded or drawn anew since the last step.
    """

    PLAIN: ClassVar[type[nn.Module]]
    PHI: ClassVar[tuple[str, ...]] = (
        "whitener",
        "mean",
        "output_whitener",
        "precision_matrix",
        "precision_damping",
    )
    TRANSPOSED: ClassVar[bool] = False

    weight: nn.Parameter
    bias: nn.Parameter | None
    whitener: Tensor
    mean: Tensor
    output_whitener: Tensor | None
    precision_matrix: Tensor | None
    precision_damping: Tensor | None
    activations: bool
    last_pass: GradientFactors | None
    aside: Aside | None
    positions: int | None
    uncentred: bool
    dropped_centre: Tensor | None
    replaced: bool

    @property
    def feature_groups(self) -> int:
        """Number of groups; each has its own whitener."""
        return int(getattr(self, "groups", 1))

    @property
    def centred(self) -> bool:
        """Whether c is the mean; if not, c = 0 and the second moment is whitened.

        A layer with a frozen bias is not centred, because b = d − W c would change with W.
        """
        return self.bias is not None and self.bias.requires_grad and not self.TRANSPOSED

    @property
    def outputs(self) -> int:
        """Number of outputs of all groups together; taps are not counted."""
        taps = math.prod(self.weight.shape[2:])
        return self.weight.numel() // (self.mean.shape[1] * taps)

    @property
    def preconditioned(self) -> bool:
        """Whether W and d are the parameters, with natural gradients."""
        return self.precision_matrix is not None

    @property
    def preconditioner(self) -> Preconditioner | None:
        """P of a preconditioned layer, which refers to its buffers; None for a layer with U."""
        if self.precision_matrix is None:
            return None
        return preconditioner_of(self.precision_matrix, self.precision_damping)

    def phi(self) -> Phi:
        """Return the present Φ: the layer's own tensors, except U of a preconditioned layer."""
        held = self.preconditioner
        whitener = self.whitener if held is None else root_of_preconditioner(held.whole())
        return Phi(self.mean, whitener, output=self.output_whitener)

    def phi_buffers(self) -> list[Tensor]:
        """The buffers that hold Φ."""
        held = [getattr(self, name) for name in self.PHI]
        return [buffer for buffer in held if buffer is not None]

    def put_preconditioner(self, new: Preconditioner) -> None:
        """Replace P of a preconditioned layer, in place if the shape is unchanged."""
        matrix = new.matrix if isinstance(new, Dense) else new.directions
        held = self.precision_matrix
        if held is not None and held.shape == matrix.shape:
            held.copy_(matrix)
        else:
            # Always the same memory layout: a resumed run must multiply in the same order.
            self.precision_matrix = matrix.to(self.mean.dtype).clone(
                memory_format=torch.contiguous_format
            )
        if isinstance(new, Dense):
            self.precision_damping = None
        elif self.precision_damping is None:
            self.precision_damping = new.damping.to(self.mean.dtype, copy=True)
        else:
            self.precision_damping.copy_(new.damping)

    def start_two_sided(self) -> None:
        """Give the layer an output whitener, R = I at first."""
        outputs = self.grouped_weight(self.mean.dtype).shape[1]
        identity = torch.eye(outputs, dtype=self.mean.dtype, device=self.mean.device)
        self.output_whitener = identity.repeat(self.feature_groups, 1, 1)

    def grouped_weight(self, dtype: torch.dtype) -> Float[Tensor, "groups out taps in"]:
        """Return V in the grouped layout and in `dtype`."""
        weight = self.weight.to(dtype)
        return to_grouped(weight, self.feature_groups, self.TRANSPOSED)

    def fold(self) -> tuple[Float[Tensor, ...], Float[Tensor, " out"] | None]:
        """Apply P_Φ⁻¹ (line 7 of Algorithm 1): W = V U, b = d − W c. It is differentiable.

        Returns:
            The weight and the bias (None without one) of the plain layer that computes the same
            function, in the type of the parameters.
        """
        device = self.weight.device.type
        if torch.is_autocast_enabled(device):
            # Autocast would compute V U in half precision, where the error grows with cond(U).
            with torch.autocast(device, enabled=False):
                return self._fold()
        return self._fold()

    @property
    def canonical_given(self) -> bool:
        """Whether `torch.func.functional_call` put W and b of a state dict in place of V and d."""
        return WEIGHT in self.__dict__ or BIAS in self.__dict__

    def _fold(self) -> tuple[Float[Tensor, ...], Float[Tensor, " out"] | None]:
        if self.canonical_given:
            return self.weight, self.bias
        if self.precision_matrix is not None:
            return self._natural(self.precision_matrix)
        dtype = product_dtype(self.whitener.dtype, self.whitener.device)
        phi = Phi(
            self.mean.to(dtype),
            self.whitener.to(dtype),
            output=None if self.output_whitener is None else self.output_whitener.to(dtype),
        )
        bias = None
        if self.bias is not None:
            bias = self.bias.to(dtype).reshape(self.feature_groups, -1)
        weight, bias = to_canonical(self.grouped_weight(dtype), bias, phi)
        plain = from_grouped(weight, self.weight.shape, self.TRANSPOSED)
        if bias is not None:
            bias = bias.reshape(-1).to(self.weight.dtype)
        # Convolution kernels raise an error for a gradient with the strides of a transposed view.
        return plain.to(self.weight.dtype).contiguous(), bias

    def _natural(
        self, preconditioner: Tensor
    ) -> tuple[Float[Tensor, ...], Float[Tensor, " out"] | None]:
        dtype = product_dtype(preconditioner.dtype, preconditioner.device)
        mean = self.mean.to(dtype)
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return self.weight, plain_bias(self.weight, self.bias, mean, self.TRANSPOSED)
        refuse_transforms()
        damping = self.precision_damping
        if damping is not None:
            damping = damping.to(dtype)
        plain: tuple[Tensor, Tensor | None] = NaturalGradient.apply(  # type: ignore[no-untyped-call]
            self.weight,
            self.bias,
            mean,
            preconditioner.to(dtype),
            damping,
            self.TRANSPOSED,
            None if torch.compiler.is_compiling() else self.last_pass,
        )
        return plain

    def follow_bias(self) -> None:
        """Take c out of a layer whose bias was frozen: b = d − W c must not move with W."""
        bias = self.bias
        if bias is None or bias.requires_grad:
            if self.uncentred:
                self.uncentred = False
            return
        # Tensors that stand in for parameters in torch.func say nothing of the layer's own.
        if torch.compiler.is_compiling() or not isinstance(bias, nn.Parameter):
            return
        if not self.uncentred and not transforms_active():
            self.uncentred = True
            if bool(self.mean.any()):
                self.drop_centre()

    @torch.no_grad()
    def drop_centre(self) -> None:
        """Set c = 0 and keep the function: d becomes b."""
        _, plain = self.fold()
        assert plain is not None
        assert self.bias is not None
        self.dropped_centre = self.mean.clone()
        self.bias.copy_(plain)
        self.mean.zero_()

    def reset_parameters(self) -> None:
        """Draw W and b anew, as the plain layer does, with U = I and c = 0."""
        self.clear_phi()
        super().reset_parameters()  # type: ignore[misc]

    def clear_phi(self) -> None:
        """Set U = I and c = 0; the function changes, unless the parameters are drawn anew."""
        for name, value in identity_phi(self, self.mean.device).items():
            if value is not None:
                setattr(self, name, value)
        self.replaced = True

    def whitens_activations(self, input: Tensor, rows: int) -> bool:
        """Return whether to whiten inputs, `rows` · N² multiply-adds, instead of M N²·taps."""
        wide = input.dtype == self.weight.dtype == self.mean.dtype
        return (
            self.activations
            and not self.preconditioned
            and not self.canonical_given
            and input.layout is torch.strided
            and self.output_whitener is None
            and wide
            and not torch.is_autocast_enabled(input.device.type)
            and rows < self.weight.numel() // self.mean.shape[1]
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save W and b as `weight` and `bias`, and V and d beside them.

        With `keep_vars` the parameters themselves are wanted: they stay under their names.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            write_canonical(self, destination, prefix)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a whitened or a plain checkpoint, with U or with P, as its keys show.

        The mode of a whitened checkpoint is taken over: a conversion between modes would round, but
        a resumed run must be bit-identical. W and b of a plain one are written in the present Φ.
        """
        state = read_canonical(self, state, prefix)
        self.replaced, self.uncentred = True, False
        holder = {"whitener": self.whitener, "precision_matrix": self.precision_matrix}
        present = [name for name in holder if prefix + name in state]
        if len(present) == 1 and holder[present[0]] is None:
            (name,) = present
            (other,) = set(holder) - {name}
            setattr(self, name, self.phi().whitener.clone())
            setattr(self, other, None)
        given = state.get(f"{prefix}precision_matrix")
        if given is not None and self.precision_matrix is not None:
            epsilon = state.get(f"{prefix}precision_damping")
            # A checkpoint may have another number of leading directions, but not another `in`.
            if given.dim() == 3 and given.shape[:2] == self.mean.shape:
                self.precision_matrix = self.mean.new_empty(given.shape)
            self.precision_damping = (
                None if epsilon is None else self.mean.new_empty(len(self.mean))
            )
        super()._load_from_state_dict(state, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Whitened:
        """Apply `to`, `cuda`, `double` or `bfloat16`, but keep Φ in float32 or wider.

        `module.to(torch.bfloat16)` casts buffers too. With a whitener of 8 bits, V U would no
        longer be close to W.
        """
        before = {name: self._buffers[name] for name in self.PHI}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None:
                continue
            if old.is_meta and not new.is_meta:
                # The numbers are of no origin: start as `whiten` does.
                self._buffers[name] = identity_phi(self, new.device)[name]
                continue
            wanted = torch.promote_types(new.dtype, torch.float32)
            if new.dtype != wanted:
                self._buffers[name] = old.to(device=new.device, dtype=wanted)
        for moments in (self.moments, self.backward_moments):
            if moments is not None:
                moments.to(self.weight.device)
        if self.variances is not None:
            self.variances = UnitVariances(self.mean)
        return self
