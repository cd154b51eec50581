"""All experiments, by name."""

from __future__ import annotations

from pipelines.core.errors import UserError
from pipelines.paper.autoencoder_experiment import AUTOENCODERS
from pipelines.paper.cifar_experiment import CIFAR10
from pipelines.paper.experiment import SCALES, Experiment
from pipelines.paper.fisher_experiment import FISHER
from pipelines.paper.imagenet_experiment import IMAGENET
from pipelines.paper.relu_experiment import RELU
from pipelines.paper.sensitivity_experiment import SENSITIVITY

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one for one in (FISHER, SENSITIVITY, AUTOENCODERS, RELU, CIFAR10, IMAGENET)
}


def experiment(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"NAME {name!r}: no such experiment; allowed: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def check_scale(name: str) -> None:
    """Check the name of a scale.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in SCALES:
        raise UserError(f"--scale {name!r}: allowed: {', '.join(SCALES)}")
