"""The examples of each step, and their augmentation: a pure function of seed and position.

Every rank draws the same global batch and takes its own slice of it, so that the number of ranks
changes neither the batches nor the augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.training.augmentation import Augmentation


def _generator(*key: int) -> torch.Generator:
    generator = torch.Generator()
    seed = 0
    for part in key:  # not Python's hash, which may change between versions
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**63
    generator.manual_seed(seed)
    return generator


def steps_per_epoch(images: int, batch: int) -> int:
    """Return the number of full batches in an epoch; 1 if there are too few images for one."""
    return max(1, images // batch)


def slice_of(batch: int, rank: int, ranks: int) -> slice:
    """Return the part of a global batch for a rank; sizes differ by at most one."""
    return slice(batch * rank // ranks, batch * (rank + 1) // ranks)


def shifted(images: Tensor, pixels: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return each image shifted by up to `pixels` along each axis, and half of them mirrored.

    Edge pixels are repeated.

    Args:
        images: [batch, channels, height, width], any dtype.
        pixels: Largest shift along each axis.
        flip: Whether to mirror each image left to right with probability ½.
        generator: Source of randomness, on the CPU.
    """
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        reverse = torch.arange(width - 1, -1, -1)  # not flip: torch lacks it for uint16
        images = torch.where(mirrored.view(-1, 1, 1, 1), images[..., reverse], images)
    if pixels:
        offsets = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1), generator=generator)
        padded = functional.pad(images.float(), (pixels,) * 4, mode="replicate").to(images.dtype)
        rows = offsets[0] + torch.arange(height).view(1, -1, 1)
        columns = offsets[1] + torch.arange(width).view(1, 1, -1)
        index = torch.arange(count).view(-1, 1, 1)
        images = padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)
    return images.contiguous()


def epoch(
    inputs: Tensor,
    targets: Tensor,
    *,
    batch: int,
    augment: int,
    flip: bool,
    seed: int,
    number: int,
    rank: int = 0,
    ranks: int = 1,
    first: int = 0,
    vary: Augmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield a rank's share of the batches of one epoch.

    The examples after the last full batch are left out; the next epoch has another order.

    Args:
        inputs: Images [n, channels, height, width], or rows [n, columns].
        targets: [n, …].
        batch: Examples per step over all ranks.
        augment: Largest random shift of images, pixels.
        flip: Whether half of the images are mirrored.
        seed: The run's seed.
        number: Number of the epoch, from 0.
        rank: This rank.
        ranks: Number of ranks.
        first: Batches of the epoch to skip.
        vary: Called with the images of the global batch and a generator that depends on seed, epoch
            and step; takes the place of `augment` and `flip`.

    Yields:
        Inputs and targets of this rank, and the size of the global batch.
    """
    count = len(inputs)
    order = torch.randperm(count, generator=_generator(seed, number))
    for step in range(first, steps_per_epoch(count, batch)):
        chosen = order[step * batch : (step + 1) * batch]
        generator = _generator(seed, number, step + 1)
        varied = inputs[chosen]
        if vary is not None:
            varied = vary(varied, generator)
        elif varied.ndim == 4:
            varied = shifted(varied, augment, flip, generator)
        part = slice_of(len(chosen), rank, ranks)
        yield varied[part], targets[chosen][part], len(chosen)
