"""`train.augment_by`: a function of the user's own that varies the images of a batch.

It takes the place of shifts and mirroring. It gets the images of all ranks and a generator whose
state depends only on the seed and the step, so the number of ranks changes nothing, and a training
that is resumed goes on as it would have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.core import own_code
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card, load_split

KEY = "train.augment_by"
_TRIED = 64
Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""From images [batch, channels, height, width] and a generator to images of that shape and type."""


def augmentation(config: TrainConfig, checkout: Path) -> Augmentation | None:
    """Return the function that varies the images; None without one of the user's own.

    The function that is returned raises a `UserError` with file and line where the user's function
    fails, or returns another shape or type.

    Args:
        config: The section `train` of the parameters.
        checkout: A path in the checkout that holds the user's own code; looked at only for such.

    Raises:
        UserError: If there is no such function.
    """
    if not config.augment_by:
        return None
    root = Layout.find(checkout).root
    said = f"{KEY} = {config.augment_by!r}"
    function = own_code.load(config.augment_by, root, KEY)

    def vary(images: Tensor, generator: torch.Generator) -> Tensor:
        shape, dtype = images.shape, images.dtype
        try:
            with torch.no_grad():
                varied: Any = function(images, generator)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{said}: {own_code.where(error, root)}") from None
        if not isinstance(varied, Tensor):
            raise UserError(f"{said}: returned {type(varied).__name__}; a tensor is needed")
        if (varied.shape, varied.dtype, varied.device.type) != (shape, dtype, "cpu"):
            raise UserError(
                f"{said}: returned {_told(varied)}; needed: {_told(images)}, as it was given"
            )
        return varied.contiguous()

    return vary


def try_out(config: TrainConfig, prepared: Path) -> None:
    """Check that `train.augment_by` can be relied on: its result depends on its arguments alone.

    Args:
        config: The section `train` of the parameters; without a function nothing is done.
        prepared: Output of `prepare`, in the checkout; some of its images are tried.

    Raises:
        UserError: If there is no such function, or it fails, changes shape or type, or draws random
            numbers from elsewhere than its generator.
    """
    vary = augmentation(config, prepared)
    if vary is None:
        return
    if load_card(prepared).form.kind == "rows":
        raise UserError(
            f"{KEY} = {config.augment_by!r}: the data are a table, and this varies images; "
            "allowed: ''"
        )
    images = torch.tensor(load_split(prepared, "validation").inputs[:_TRIED])
    found = []
    for seed in (1, 2):
        with _seeded(seed):
            before = torch.get_rng_state()
            generator = torch.Generator()
            generator.manual_seed(0)
            found.append(vary(images.clone(), generator))
            used = not torch.equal(before, torch.get_rng_state())
        if used or not torch.equal(found[0], found[-1]):
            raise UserError(
                f"{KEY} = {config.augment_by!r}: the same images and the same generator gave two "
                "results, or global random numbers were used; everything random must come from "
                "the generator: torch.rand(..., generator=generator)"
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every global source of random numbers, and restore it afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _told(images: Tensor) -> str:
    kind = str(images.dtype).removeprefix("torch.")
    place = "" if images.device.type == "cpu" else f" on {images.device}"
    return f"{kind} {list(images.shape)}{place}"
