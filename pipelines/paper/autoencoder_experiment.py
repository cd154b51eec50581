"""Fig. 3c-d: the dense 8-layer auto-encoder on MNIST, against updates and against wall-clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pipelines.paper.autoencoder_report import report
from pipelines.paper.compared_methods import METHODS, device
from pipelines.paper.experiment import (
    OURS,
    Curve,
    Experiment,
    Point,
    Scale,
    Stated,
    StudyPlan,
    TrainingTask,
    Values,
    both,
)
from pipelines.paper.networks import AUTOENCODER, autoencoder, loss
from pipelines.paper.one_training import train
from pipelines.paper.paper_images import SplitImages
from pipelines.paper.training_problem import TrainingProblem

NARROW = (784, 200, 100, 50, 16, 50, 100, 200, 784)
BOTH = ("sgd", "rmsprop", "adamw")
"""First-order methods with a row each with batch normalisation and without."""


def squared_error(model: nn.Module, images: Tensor) -> float:
    """Return the summed squared error of an image, the mean over images.

    Args:
        model: Gives logits of pixels; in evaluation mode.
        images: Pixels in [0, 1], [n, pixels].
    """
    parts = [
        (torch.sigmoid(model(part)) - part).square().sum(1) for part in torch.split(images, 500)
    ]
    return float(torch.cat(parts).mean())


def cross_entropy(model: nn.Module, images: Tensor) -> float:
    """Return the cross-entropy of pixels, summed over an image, the mean over images.

    Args:
        model: Gives logits of pixels; in evaluation mode.
        images: Pixels in [0, 1], [n, pixels].
    """
    parts = [loss(model(part), part, None) * len(part) for part in torch.split(images, 500)]
    return float(torch.stack(parts).sum()) / len(images)


ERRORS = {"squared": squared_error, "cross-entropy": cross_entropy}
"""How an auto-encoder is measured."""


def run(scale: Scale, examples: SplitImages, task: TrainingTask) -> Curve:
    """Train once on summed cross-entropy."""
    where = device()
    own, test = (part.flatten(1).to(where) for part in (examples.train, examples.test))
    error = ERRORS[scale.options.get("error", "squared")]

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {
            "train": error(model, own[: scale.measured]),
            "test": error(model, test[: scale.measured]),
        }

    longer = int(task.values.get("longer", 1))
    problem = TrainingProblem(
        network=partial(network, scale, bool(task.values.get("normalised", False))),
        inputs=own,
        targets=own,
        loss=lambda outputs, targets: loss(outputs, targets, None),
        examples=scale.examples * longer,
        marks=scale.marks * longer,
        measure=measure,
    )
    return train(problem, task)


def network(scale: Scale, normalised: bool) -> nn.Module:
    """Return the auto-encoder of a scale."""
    nonlinearity = str(scale.options.get("nonlinearity", "sigmoid"))
    return autoencoder(nonlinearity, normalised, tuple(scale.options["widths"]))


def score(scale: Scale, curve: Curve) -> float:
    """Return the training error at the end."""
    return curve.last.figures["train"] if curve.marks else math.inf


def _scale(
    data: str,
    widths: tuple[int, ...],
    examples: int,
    marks: int,
    trials: int,
    without: tuple[str, ...] = (),
) -> Scale:
    left_out = ("adam", *without)  # AdamW is there
    methods = {name: method for name, method in METHODS.items() if name not in left_out}
    studies = {
        name: StudyPlan(name, method.space, first=method.beginnings)
        for name, method in methods.items()
    }
    plain: Values = {"normalised": False, "lr": 0.03}
    points = {
        "untuned": Point("PRONG, untuned", "prong", values=plain),
        **OURS,
    }
    for name, method in methods.items():
        if name in BOTH:
            points.update(both(name, method.label))
        elif name != "prong":
            points[name] = Point(method.label, name, name)
    return Scale(
        data=data,
        size=28,
        measured=2000,
        examples=examples,
        marks=marks,
        trials=trials,
        seeds=3,
        studies=studies,
        points=points,
        options={"widths": list(widths)},
    )


AUTOENCODERS = Experiment(
    name="autoencoder",
    figure="Figure 3c-d",
    question=(
        "How fast does PRONG train a deep auto-encoder, in updates and in time, beside methods "
        "that are tuned alike?"
    ),
    stated=(
        Stated("fewer updates than the baselines", "up to 10 times", "section 4.2"),
        Stated("runtime of an epoch ÷ SGD's: PRONG", "3.2", "section 4.2"),
        Stated("runtime of an epoch ÷ SGD's: batch normalisation", "2.3", "section 4.2"),
        Stated("runtime of an epoch ÷ SGD's: RMSprop", "9", "section 4.2"),
        Stated("share of PRONG's runtime in reparametrisations", "34 %", "section 4.2"),
    ),
    chosen=(
        "The network is that of Martens (2010), whom the paper follows: sigmoid units, a linear "
        "code, 784-1000-500-250-30 and back; the small scale has narrower layers and the 5,000 "
        "digits that come with the package, and leaves out KL-SOAP, whose updates take longest.",
        "The loss is the cross-entropy of pixels, summed over an image. The error is the summed "
        "squared error of an image, in evaluation mode, on the first 2,000 training images and "
        "test images.",
        "A training's budget is a number of examples; batches of 128 or 256 images are searched, "
        "as the paper's best batch sizes are these.",
        "Every study has the same number of trials, with seed 0; PRONG and PRONG⁺ share one. "
        "Trials are judged by the training error at the end. The rows without batch "
        "normalisation and with it are the best trial of each kind.",
        "Seconds are those of the updates with one process, refreshes included and without the "
        "loading of images and measuring.",
    ),
    scales={
        "small": _scale("digits", NARROW, 128 * 200, 20, 6, without=("kl-soap",)),
        "full": _scale("mnist", AUTOENCODER, 128 * 14_400, 90, 30),
    },
    network=network,
    train=run,
    score=score,
    report=report,
    sources=("autoencoder_experiment",),
)
