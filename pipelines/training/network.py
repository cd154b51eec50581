"""The network that is trained, saved and folded: any network, with the normalisation around it.

It takes raw images (uint8, or the same values in any float type) and normalises them itself, so
the exported network needs no preprocessing except the decoder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prong
from pipelines.core import own_code
from pipelines.core.config import Method, TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.files import atomic_path, write_json
from pipelines.core.paths import Layout
from pipelines.data.prepared import Card
from pipelines.tasks.form import Form
from pipelines.tasks.named import task_code, task_of
from pipelines.training.row_features import RowFeatures
from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.by_name import KEY, make

BODY = "body."
"""What the names of all layers begin with: those inside the normalisation."""
ABOUT = "prong"
"""The entry of a file of plain weights that says what the logits mean."""
_SPEC, _WEIGHTS = "network.json", "network.safetensors"


@dataclass(frozen=True)
class NetworkSpec:
    """The settings that define a network's architecture and input.

    Attributes:
        form: Inputs and answers.
        output_shape: Of the raw output for one input.
        method: Determines whitening (`prong`, `prong+`) and, where the network has a choice,
            batch normalisation (`bn`, `prong+`).
        width: `train.width`, as the network uses it.
        hidden: `train.hidden`, as the network uses it.
        network: `train.network`.
        code: Hash of the user's own code that makes the network; empty for a name of the zoo.
        augmentation: Hash of the user's own code that varied the images in training; empty without
            any. It names what the weights come from; the network itself has nothing of it.
        task_code: Hash of the user's own code of the task; empty for one that is built in.
    """

    form: Form
    output_shape: tuple[int, ...]
    method: Method
    width: int
    hidden: int
    network: str = "cnn"
    code: str = ""
    augmentation: str = ""
    task_code: str = ""

    @property
    def normalised(self) -> bool:
        """Whether the network is asked to have batch normalisation."""
        return self.method in ("bn", "prong+")

    @property
    def whitened(self) -> bool:
        """Whether the layers are trained in whitened coordinates."""
        return self.method in ("prong", "prong+")

    def signature(self) -> NetworkSignature:
        """Return what the function that makes the network is given."""
        form = self.form
        rows = (sum(column.features for column in form.columns),)
        return NetworkSignature(
            input_shape=form.input_shape if form.kind == "images" else rows,
            output_shape=self.output_shape,
            classes=form.classes,
            mean=form.mean,
            deviation=form.deviation,
            width=self.width,
            hidden=self.hidden,
            batch_norm=self.normalised,
            task=form.task,
        )


class Network(nn.Module):
    """Normalisation, then the network itself: in the plain form with (W, b).

    `prong.whiten` makes the whitened form of it.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: NetworkSpec, body: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        form = spec.form
        if form.kind == "images":
            self.register_buffer("mean", torch.tensor(form.mean).view(1, -1, 1, 1))
            self.register_buffer("deviation", torch.tensor(form.deviation).view(1, -1, 1, 1))
        else:
            self.features = RowFeatures(form.columns)
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        """Return raw outputs [batch, *output_shape] of examples as the data hold them.

        Args:
            inputs: Images [batch, channels, size, size], 0 to 255 or 65,535; or rows
                [batch, columns], float64.
        """
        if self.spec.form.kind == "images":
            pixels = inputs.to(self.mean.dtype) / self.spec.form.levels
            found: Tensor = self.body((pixels - self.mean) / self.deviation)
        else:
            dtype = next(self.body.parameters()).dtype
            found = self.body(self.features(inputs).to(dtype))
        return found


def describe(config: TrainConfig, card: Card, checkout: Path) -> NetworkSpec:
    """Return the specification of the network that is to be trained.

    Args:
        config: The section `train` of the parameters.
        card: The data's.
        checkout: A path in the checkout that holds the user's own code; looked at only for such.

    Raises:
        UserError: If own code is named and its file is absent or cannot be read.
    """
    code = augmentation = ""
    if own_code.is_own(config.network):
        code = own_code.own_hash(config.network, Layout.find(checkout).root, KEY)
    if config.augment_by:
        root = Layout.find(checkout).root
        augmentation = own_code.own_hash(config.augment_by, root, "train.augment_by")
    return NetworkSpec(
        form=card.form,
        output_shape=task_of(card.form, checkout).output_shape,
        method=config.method,
        width=config.width,
        hidden=config.hidden,
        network=config.network,
        code=code,
        augmentation=augmentation,
        task_code=task_code(card.form.task, checkout),
    )


def build(spec: NetworkSpec, checkout: Path | None = None) -> nn.Module:
    """Return a newly initialised network, whitened if the method whitens.

    Args:
        spec: What to build.
        checkout: A path in the checkout that holds the user's own code; needed for such only.

    Raises:
        UserError: If the network cannot be made, or has nothing to train or to whiten.
    """
    return in_its_form(plain(spec, checkout), spec)


def in_its_form(network: Network, spec: NetworkSpec) -> nn.Module:
    """Return a plain network as it is trained: whitened if the method whitens.

    Raises:
        UserError: If it then has nothing to whiten.
    """
    if not spec.whitened:
        return network
    reasons = {s.name.removeprefix(BODY): s.reason for s in prong.coverage(network)}
    if all(reasons.values()):
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UserError(
            f"{KEY} = {spec.network!r}: train.method = {spec.method!r} finds no layer to whiten "
            f"({listed}); use nn.Linear or nn.Conv2d, or another train.method"
        )
    with warnings.catch_warnings():  # how much is whitened is told before the training
        warnings.filterwarnings("ignore", ".*Less than half is whitened", UserWarning)
        return prong.whiten(network)


def plain(spec: NetworkSpec, checkout: Path | None = None) -> Network:
    """Return a newly initialised network in its plain form; arguments as for `build`.

    Raises:
        UserError: If it cannot be made, or has no parameter to train.
    """
    own = own_code.is_own(spec.network) and checkout is not None
    root = Layout.find(checkout).root if own else None
    if root is not None and own_code.own_hash(spec.network, root, KEY) != spec.code:
        raise UserError(
            f"{KEY} = {spec.network!r}: its code is not the one of the trained network; rerun "
            "train, or bring the code back"
        )
    body = make(spec.network, spec.signature(), root)
    if not any(parameter.requires_grad for parameter in body.parameters()):
        raise UserError(f"{KEY} = {spec.network!r}: it has no parameter to train")
    return Network(spec, body)


def save(directory: Path, spec: NetworkSpec, state: Mapping[str, Tensor]) -> None:
    """Write `network.json` and `network.safetensors` into `directory`, each atomically."""
    write_json(directory / _SPEC, asdict(spec))
    with atomic_path(directory / _WEIGHTS) as temporary:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, temporary)


def save_plain(plain: nn.Module, classes: Sequence[str], path: Path) -> None:
    """Write a plain network's weights, for trainings that start from it; equal in, equal out.

    Args:
        plain: A folded `Network`.
        classes: Their names, in the order of the logits.
        path: The file, safetensors, replaced atomically.
    """
    # A copy of each: two names may share one tensor, which safetensors refuses.
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in plain.state_dict().items()}
    about = json.dumps({"classes": list(classes)}, ensure_ascii=False)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={ABOUT: about})  # one entry: their order is random


def load_spec(directory: Path) -> NetworkSpec:
    """Read `network.json`.

    Raises:
        UserError: If it is absent or not a network's specification.
    """
    path = directory / _SPEC
    try:
        return TypeAdapter(NetworkSpec).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: not a trained network: {key}: {first['msg']}") from None
    except OSError as error:
        raise UserError(f"{path}: not a trained network: {error}") from None


def load(directory: Path) -> tuple[NetworkSpec, nn.Module]:
    """Return the specification and the trained network in evaluation mode.

    Raises:
        UserError: If a file is absent, damaged, or does not fit the specification, or the user's
            own code has changed since.
    """
    spec = load_spec(directory)
    network = build(spec, directory)
    try:
        network.load_state_dict(load_file(directory / _WEIGHTS), strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{directory / _WEIGHTS}: the weights are not those of this network "
            f"({KEY} = {spec.network!r}), cannot be loaded: {text[:500]}"
        ) from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory / _WEIGHTS}: cannot be loaded: {error}") from None
    return spec, network.eval()
