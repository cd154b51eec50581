"""From the value of `train.network` to the function that makes the network."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.core import own_code
from pipelines.core.config import TIMM
from pipelines.core.errors import UserError
from pipelines.tasks.form import RECONSTRUCTION
from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.chains import autoencoder, cnn, mlp, vgg
from pipelines.training.zoo.inception_modules import inception
from pipelines.training.zoo.residual import resnet
from pipelines.training.zoo.transformer import vit

KEY = "train.network"
SMALLEST = 8
"""Edge in pixels from which on every network of the zoo works; `_ANY_SIZE` take any."""
ZOO: dict[str, Callable[[NetworkSignature], nn.Module]] = {
    "cnn": cnn,
    "mlp": mlp,
    "vgg": vgg,
    "resnet": resnet,
    "inception": inception,
    "autoencoder": autoencoder,
    "vit": vit,
}
_ANY_SIZE = ("cnn", "mlp", "autoencoder")
_ROWS = ("mlp",)
_IMAGES_AGAIN = ("autoencoder",)


def make(name: str, asked: NetworkSignature, root: Path | None) -> nn.Module:
    """Return a newly initialised network.

    Args:
        name: A name of `ZOO`, `timm:NAME`, or `module:function` in the checkout.
        asked: What the network is to be.
        root: The checkout; needed for own code only.

    Raises:
        UserError: If the name is unknown, the images are too small, timm is not installed, or
            own code cannot be loaded, raises, or returns no module.
    """
    if name.startswith(TIMM):
        _suits(name, asked)
        return _timm(name, asked)
    if name in ZOO:
        _suits(name, asked)
        if asked.size < SMALLEST and name not in _ANY_SIZE:
            raise UserError(
                f"{KEY} = {name!r}: images of {asked.size} pixels are too small, it needs "
                f"{SMALLEST} or more; set data.size, or take {' or '.join(_ANY_SIZE)}"
            )
        return ZOO[name](asked)
    if not own_code.is_own(name) or root is None:
        allowed = ", ".join([*ZOO, f"{TIMM}NAME", "module:function"])
        raise UserError(f"{KEY} = {name!r}: unknown; allowed: {allowed}")
    function = own_code.load(name, root, KEY)
    try:
        network: Any = function(asked)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{KEY} = {name!r}: {own_code.where(error, root)}") from None
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{KEY} = {name!r}: returned {type(network).__name__}; a torch.nn.Module is needed"
        )
    return network


def _suits(name: str, asked: NetworkSignature) -> None:
    """Check that a known network is one for this kind of data, and for this task."""
    if len(asked.input_shape) == 1 and name not in _ROWS:
        raise UserError(
            f"{KEY} = {name!r}: it needs images, and the data are rows of a table; take "
            f"{' or '.join(_ROWS)}, or module:function"
        )
    if asked.task == RECONSTRUCTION and name not in _IMAGES_AGAIN:
        raise UserError(
            f"{KEY} = {name!r}: it does not return images, which task.name = 'reconstruction' "
            f"asks for; take {' or '.join(_IMAGES_AGAIN)}, or module:function"
        )
    if asked.task != RECONSTRUCTION and name in _IMAGES_AGAIN:
        raise UserError(f"{KEY} = {name!r}: it is for task.name = 'reconstruction' only")


def _timm(name: str, asked: NetworkSignature) -> nn.Module:
    """Return a model of timm without trained weights, for this size and these classes."""
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError:
        raise UserError(
            f"{KEY} = {name!r}: timm is not installed; run `pip install timm`, or take one of "
            f"{', '.join(ZOO)}"
        ) from None
    called = name.removeprefix(TIMM)
    if not timm.is_model(called):
        near = ", ".join(timm.list_models(f"*{called}*")[:5])
        hint = f"; similar: {near}" if near else "; timm.list_models() lists them"
        raise UserError(f"{KEY} = {name!r}: timm has no model {called!r}{hint}")
    options = {"num_classes": asked.outputs, "in_chans": asked.channels}
    try:
        try:
            made = timm.create_model(called, **options, img_size=asked.size)
        except TypeError:  # only transformers are made for one size of images
            made = timm.create_model(called, **options)
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{KEY} = {name!r}: timm cannot make it for images of {asked.size} pixels and "
            f"{asked.channels} channels: {type(error).__name__}: {said}"
        ) from None
    network: nn.Module = made
    return network
