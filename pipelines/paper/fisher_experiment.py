"""Fig. 2: the Fisher matrix of a small network, and its condition number during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.paper import fisher_report
from pipelines.paper.compared_methods import METHODS, device
from pipelines.paper.experiment import (
    Curve,
    Experiment,
    Point,
    Scale,
    Stated,
    StudyPlan,
    TrainingTask,
)
from pipelines.paper.networks import tanh_mlp
from pipelines.paper.one_training import train
from pipelines.paper.paper_images import SplitImages
from pipelines.paper.training_problem import TrainingProblem
from pipelines.systems.optuna.dimensions import Range, Value
from prong.analysis.fisher import exact_fisher

WIDTHS = (100, 20, 20, 20, 10)
SEEN = 1e-12
"""Eigenvalues above this share of the largest count."""
_POINTS = {
    "sgd": ("sgd", "SGD", False),
    "rmsprop": ("rmsprop", "RMSprop", False),
    "bn": ("sgd", "BN + SGD", True),
    "prong": ("prong", "PRONG", False),
}


def condition(matrix: Tensor) -> tuple[float, int]:
    """Return largest over smallest eigenvalue of those that count, and how many those are.

    Args:
        matrix: Symmetric, positive semidefinite [n, n].
    """
    values = torch.linalg.eigvalsh(matrix)
    seen = values[values > SEEN * values[-1]]
    return float(seen[-1] / seen[0]), len(seen)


def middle(model: nn.Module) -> list[str]:
    """Return the parameters of the layers between two hidden layers, by name."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [f"{name}.{part}" for name in names[1:-1] for part in ("weight", "bias")]


def middle_fisher(model: nn.Module, images: Tensor) -> Tensor:
    """Return the diagonal blocks of the Fisher matrix that belong to the middle layers.

    With respect to Ω for a whitened model. Blocks between layers are zero, as in the block diagonal
    of the Fisher matrix that PRONG approximates; the Fisher matrix is exact otherwise.

    Args:
        model: Its layers must not run preconditioned.
        images: The expectation is over these [n, inputs].
    """
    names = middle(model)
    pairs = [names[at : at + 2] for at in range(0, len(names), 2)]
    found: Tensor = torch.block_diag(  # type: ignore[no-untyped-call]
        *(exact_fisher(model, images, names=pair).matrix for pair in pairs)
    )
    return found


def _begin(model: nn.Module, images: Tensor) -> None:
    """Let batch normalisation begin as the identity on the images: the same function as without."""
    model.eval()
    with torch.no_grad():
        h = images
        for layer in model.children():
            if isinstance(layer, nn.BatchNorm1d):
                variance, mean = torch.var_mean(h, 0, correction=0)
                layer.running_mean.copy_(mean)  # type: ignore[union-attr]
                layer.running_var.copy_(variance)  # type: ignore[union-attr]
                layer.weight.copy_((variance + layer.eps).sqrt())
                layer.bias.copy_(mean)
            h = layer(h)
    model.train()


def run(scale: Scale, examples: SplitImages, task: TrainingTask) -> Curve:
    """Train once; a training of a point measures the Fisher matrix as well.

    Everything is in float64: eigenvalues down to 1e-12 of the largest are to be seen.
    """
    where = device()
    flat, test = (
        part.flatten(1).to(where, torch.float64) for part in (examples.train, examples.test)
    )
    labels, test_labels = examples.labels.to(where), examples.test_labels.to(where)
    seen = flat[: int(scale.options["fisher_images"])]
    pictures: dict[str, Tensor] = {}

    def measure(model: nn.Module) -> Mapping[str, float]:
        own, of = flat[: scale.measured], labels[: scale.measured]
        wrong = 100 * (model(test).argmax(1) != test_labels).double().mean()
        return {"loss": float(F.cross_entropy(model(own), of)), "test_error": float(wrong)}

    def observe(model: nn.Module) -> Mapping[str, float]:
        if not task.final:
            return {}
        matrix = middle_fisher(model, seen)
        if len(pictures) < 2:
            pictures["after" if pictures else "before"] = matrix
        found, rank = condition(matrix)
        return {"condition": found, "rank": rank}

    problem = TrainingProblem(
        network=lambda: tanh_mlp(WIDTHS, bool(task.values["normalised"])).double(),
        inputs=flat,
        targets=labels,
        loss=F.cross_entropy,
        examples=scale.examples,
        marks=scale.marks,
        measure=measure,
        begin=partial(_begin, images=flat[: scale.measured]),
        before=observe,
        observe=observe,
    )
    curve = train(problem, task)
    if task.files is not None and METHODS[task.method].whitened and len(pictures) == 2:
        fisher_report.draw(pictures["before"], pictures["after"], task.files / "fisher.png")
    return curve


def score(scale: Scale, curve: Curve) -> float:
    """Return how far the loss at the end is from what all methods are to reach."""
    loss = curve.last.figures["loss"]
    target = float(scale.options["loss"])
    return abs(math.log(loss / target)) if loss > 0 else math.inf


def _scale(data: str, examples: int, seeds: int, trials: int, fisher_images: int) -> Scale:
    studies, points = {}, {}
    for key, (method, label, normalised) in _POINTS.items():
        fixed: dict[str, Value] = {"normalised": normalised, "batch": 64}
        if method == "prong":
            fixed |= {"mode": "fold", "init": "preserve", "step_limit": 0.0, "period": 100}
            fixed |= {"damping": 1e-3}
        low, high = (1e-6, 0.1) if method == "rmsprop" else (1e-4, 1.0)
        space = {"lr": Range(low, high, log=True, whole=False)}
        first = ({"lr": 1e-3 if method == "prong" else METHODS[method].first},)
        studies[key] = StudyPlan(method, space, fixed, first)
        points[key] = Point(label, method, study=key)
    return Scale(
        data=data,
        size=10,
        measured=2000,
        examples=examples,
        marks=12,
        trials=trials,
        seeds=seeds,
        studies=studies,
        points=points,
        options={"fisher_images": fisher_images, "loss": 0.2},
    )


FISHER = Experiment(
    name="fisher",
    figure="Figure 2",
    question=(
        "Does the reparametrisation improve the condition number of the Fisher matrix, at its "
        "start and throughout training?"
    ),
    stated=(
        Stated(
            "condition number after the first reparametrisation, of that before",
            'below 5 % ("reduction of more than 95%")',
            "section 4.1, of Fig. 2c",
        ),
    ),
    chosen=(
        "The widths of the network: 100-20-20-20-10, three hidden layers of tanh units. The blocks "
        "of its two layers between hidden layers are measured, weights and biases, without what "
        "lies between the layers.",
        "The Fisher matrix is exact: the expectation over labels is taken in closed form. It is of "
        "training images in evaluation mode, in float64. PRONG's is with respect to Ω.",
        "The condition number is over the eigenvalues above 1e-12 of the largest.",
        '"The same initial conditioning": all networks begin with the same weights. Batch '
        "normalisation begins as the identity on the training images, so that its network begins "
        "as the same function.",
        '"Learning rates such that all reach the same training error": the rate of each method '
        "is searched, with equal numbers of trials, for a training cross-entropy of 0.2 at the "
        "end; the rate is constant, batches have 64 images.",
        "PRONG: T = 100, ε = 0.001, the function is preserved at the start, no step control, so "
        "that the rate alone decides how long a step is; momentum 0.9 for all, also RMSprop.",
    ),
    scales={
        "small": _scale("digits", 64 * 600, seeds=3, trials=10, fisher_images=400),
        "full": _scale("mnist", 64 * 4000, seeds=5, trials=20, fisher_images=2000),
    },
    network=lambda scale, normalised: tanh_mlp(WIDTHS, normalised),
    train=run,
    score=score,
    report=fisher_report.report,
    sources=("fisher_experiment",),
)
