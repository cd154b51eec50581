"""First and second moments of a layer's input, in a form that can be merged exactly.

The triple (count n, mean μ, centred sum of squares S = Σ (h − μ)(h − μ)ᵀ) of two sets of samples
gives that of their union without loss (Chan et al. 1983), with δ = μ₂ − μ₁ and n = n₁ + n₂:

    μ = μ₁ + δ n₂/n        S = S₁ + S₂ + δδᵀ n₁n₂/n

Micro-batches, ranks and resumed runs therefore give the same moments as one pass over all samples,
up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from prong.linalg.dtypes import product_dtype, wide_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor


class GatheringStream(Protocol):
    """A side stream on which batches are added to moments (`prong.extensions.side_stream`)."""

    def add(self, moments: Moments, samples: Tensor, examples: int, source: Tensor) -> None:
        """Add a batch to moments."""

    def join(self, device: torch.device | None = None) -> None:
        """Let the current stream wait for the side stream."""


_NARROWEST = 96  # Products of narrower matrices use only a fraction of the processor's speed.


def _stripes(size: int) -> list[tuple[int, int]]:
    """Split the rows of a symmetric matrix into at most four stripes, as pairs (start, end).

    With four stripes, the parts from their diagonal blocks to the right are 5/8 of the matrix.
    """
    width = max(_NARROWEST, -(-size // 4))
    return [(start, min(start + width, size)) for start in range(0, size, width)]


class Moments:
    """Moments of samples `[groups, samples, in]`, accumulated on the samples' device.

    Attributes:
        count: number of samples (each pixel is one sample), `[1]`.
        examples: number of examples, `[1]`.
        rejected: number of batches left out because a value was NaN or infinite, `[1]`.
        mean: μ, `[groups, in]`.
        scatter: S, `[groups, in, in]`, the centred sum of squares. Only its stripes from the
            diagonal to the right are valid; `covariance` mirrors them.
        beside: the side stream on which the last batches were added, or None. Its work may still
            run: call `settle` before reading the tensors directly.
    """

    TENSORS = ("count", "examples", "rejected", "mean", "scatter")

    def __init__(
        self, groups: int, features: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Start from no samples, with `mean` and `scatter` in `dtype` on `device`."""
        self.beside: GatheringStream | None = None
        # Shape [1] instead of a scalar: torch.compile loses in-place changes of scalar float64
        # tensors.
        counts = wide_dtype(device)
        self.count = torch.zeros(1, dtype=counts, device=device)
        self.examples = torch.zeros(1, dtype=counts, device=device)
        self.rejected = torch.zeros(1, dtype=counts, device=device)
        self.mean = torch.zeros(groups, features, dtype=dtype, device=device)
        self.scatter = torch.zeros(groups, features, features, dtype=dtype, device=device)

    @classmethod
    def of(
        cls,
        counts: Float[Tensor, "3"],
        mean: Float[Tensor, "groups in"],
        scatter: Float[Tensor, "groups in in"],
    ) -> Moments:
        """Create moments that refer to the given `mean` and `scatter`, without a copy.

        Args:
            counts: number of samples, examples and rejected batches; it is copied.
            mean: μ.
            scatter: S, in the type of `mean`.
        """
        made = cls(len(mean), 0, dtype=mean.dtype, device=mean.device)
        made.count, made.examples, made.rejected = torch.split(counts.clone(), 1)
        made.mean, made.scatter = mean, scatter
        return made

    def settle(self) -> Moments:
        """Let the current stream wait until all batches are added; return the object itself."""
        if not torch.compiler.is_compiling() and self.beside is not None:
            self.beside.join(self.mean.device)
        return self

    def __getstate__(self) -> dict[str, object]:
        """Wait until all batches are added, before a copy or storage."""
        self.settle()
        return self.__dict__.copy()

    @torch.no_grad()
    def add(self, samples: Float[Tensor, "groups samples in"], examples: int) -> None:
        """Add a batch. A batch with a NaN or an infinity is left out and counted in `rejected`.

        Args:
            samples: the batch in the grouped layout, of any floating type; it may be empty.
            examples: number of examples in the batch.
        """
        if samples.shape[1] == 0:
            return
        self.settle()
        with torch.autocast(samples.device.type, enabled=False):
            number = samples.shape[1]
            values = samples.detach().to(product_dtype(samples.dtype, samples.device))
            total = self.count + number
            # The rows are centred about a point between the old mean and that of the batch. It is
            # chosen so that their product contains the term δδᵀ n₁n₂/n besides the scatter of the
            # batch, so this term needs no separate operation and no copy.
            share = (1 - (self.count / total).sqrt()).to(self.mean.dtype)
            shift = values.mean(1).to(self.mean.dtype) - self.mean
            rows = values - (self.mean + share * shift).unsqueeze(1).to(values.dtype)
            # The decision stays on the device, because the host would have to wait for the GPU to
            # read it. The norm shows a NaN, an infinity, and a square outside the type's range.
            good = torch.isfinite(torch.linalg.vector_norm(rows).square())
            rows = rows.masked_fill_(~good, 0)
            added = good.to(self.count.dtype) * number
            columns = rows.transpose(1, 2)
            for start, end in _stripes(rows.shape[2]):
                stripe = self.scatter[:, start:end, start:]
                if rows.dtype == self.scatter.dtype:
                    stripe.baddbmm_(columns[:, start:end], rows[..., start:])
                else:
                    stripe.add_((columns[:, start:end] @ rows[..., start:]).to(stripe.dtype))
            shift = torch.where(good, shift, 0)
            self.mean.add_(shift * (number / total).to(self.mean.dtype))
            self.count.add_(added)
            self.examples.add_(good.to(self.count.dtype) * examples)
            self.rejected.add_((~good).to(self.count.dtype))

    def widened(self) -> Moments:
        """Return a copy in the widest type of the device."""
        self.settle()
        groups, features = self.mean.shape
        wide = Moments(
            groups, features, dtype=wide_dtype(self.mean.device), device=self.mean.device
        )
        for name in self.TENSORS:
            getattr(wide, name).copy_(getattr(self, name))
        return wide

    def merge(self, other: Moments) -> None:
        """Merge the moments of another set of samples into these."""
        self.settle()
        other.settle()
        total = (self.count + other.count).clamp(min=1)
        shift = other.mean.to(self.mean) - self.mean
        weight = (self.count * other.count / total).to(self.scatter.dtype)
        self.scatter.add_(
            other.scatter.to(self.scatter) + shift.unsqueeze(2) * shift.unsqueeze(1) * weight
        )
        self.mean.add_(shift * (other.count / total).to(self.mean.dtype))
        self.count.add_(other.count)
        self.examples.add_(other.examples)
        self.rejected.add_(other.rejected)

    def covariance(self) -> Float[Tensor, "groups in in"]:
        """Return the centred covariance Σ = S/n; zero without samples."""
        self.settle()
        covariance = self.scatter / self.count.clamp(min=1).to(self.scatter.dtype)
        for start, end in _stripes(covariance.shape[1]):
            covariance[:, end:, start:end] = covariance[:, start:end, end:].transpose(1, 2)
        return covariance

    def second_moment(self, centre: Float[Tensor, "groups in"]) -> Float[Tensor, "groups in in"]:
        """Return the second moment about `centre`: Σ + (μ − centre)(μ − centre)ᵀ."""
        self.settle()
        shift = self.mean - centre.to(self.mean)
        return self.covariance() + shift.unsqueeze(2) * shift.unsqueeze(1)

    def to(self, device: torch.device) -> None:
        """Replace every tensor by its copy on `device`."""
        self.settle()
        for name in self.TENSORS:
            setattr(self, name, getattr(self, name).to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the tensors, by name."""
        self.settle()
        return {name: getattr(self, name).clone() for name in self.TENSORS}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load a result of `tensors`."""
        self.settle()
        for name in self.TENSORS:
            getattr(self, name).copy_(tensors[name])


@torch.no_grad()
def add_stacked(
    several: Sequence[Moments], samples: Float[Tensor, "several samples in"], examples: int
) -> None:
    """Call `Moments.add` for several narrow inputs at once, with stacked operations.

    Args:
        several: moments with one group each, all of one shape and type.
        samples: a batch for each of `several`.
        examples: number of examples in each batch.
    """
    number = samples.shape[1]
    if number == 0:
        return
    with torch.autocast(samples.device.type, enabled=False):
        mean = torch.cat([moments.mean for moments in several])
        scatter = torch.cat([moments.scatter for moments in several])
        count = torch.cat([moments.count for moments in several])
        total = count + number
        values = samples.to(product_dtype(samples.dtype, samples.device))
        share = (1 - (count / total).sqrt()).to(mean.dtype).unsqueeze(1)
        shift = values.mean(1).to(mean.dtype) - mean
        rows = values - (mean + share * shift).unsqueeze(1).to(values.dtype)
        good = torch.isfinite(torch.linalg.vector_norm(rows, dim=(1, 2)).square())
        rows = rows.masked_fill_(~good[:, None, None], 0)
        scatter.add_((rows.transpose(1, 2) @ rows).to(scatter.dtype))
        shift = shift.masked_fill_(~good[:, None], 0)
        mean.add_(shift * (number / total).to(mean.dtype).unsqueeze(1))
        added = good.to(count.dtype)
        torch._foreach_copy_([m.mean for m in several], _each(mean))
        torch._foreach_copy_([m.scatter for m in several], _each(scatter))
        torch._foreach_add_([m.count for m in several], _each(added * number))
        torch._foreach_add_([m.examples for m in several], _each(added * examples))
        torch._foreach_add_([m.rejected for m in several], _each(1 - added))


def _each(stacked: Tensor) -> list[Tensor]:
    """Split along the first axis, which stays with length 1."""
    return list(torch.split(stacked, 1))
