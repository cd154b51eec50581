"""Fig. 4c-d: Inception with batch normalisation on ImageNet, a batch split over ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.core.config import TrainConfig
from pipelines.core.files import read_json
from pipelines.paper import imagenet_images
from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import (
    OURS,
    Curve,
    Experiment,
    Scale,
    Stated,
    StudyPlan,
    TrainingTask,
    both,
)
from pipelines.paper.imagenet_images import PREPARED, SAMPLE, WHOLE
from pipelines.paper.imagenet_report import report
from pipelines.paper.paper_images import ImagePlace
from pipelines.paper.torchrun_training import ranks_here, train
from pipelines.training.signature import NetworkSignature
from pipelines.training.zoo.inception_modules import inception

_SEARCHED = ("lr", "warmup", "period", "damping", "step_limit", "init")
_ALSO = {"sgd": "bn", "prong": "prong+"}
"""The method of the project's own loop: both have batch normalisation."""


@dataclass(frozen=True)
class PreparedImages:
    """What a training reads.

    Attributes:
        splits: Folder of the splits.
        train: Images of the training split.
        classes: Number of classes.
    """

    splits: Path
    train: int
    classes: int


def prepare(scale: Scale, place: ImagePlace, folder: Path) -> None:
    """Write the splits of a scale."""
    imagenet_images.prepare(scale.data, scale.size, place, folder)


def load(folder: Path) -> PreparedImages:
    """Return what `prepare` wrote."""
    card: Mapping[str, Any] = read_json(folder / "card.json")
    return PreparedImages(folder / PREPARED, int(card["train"]), int(card["class_count"]))


def config_of(scale: Scale, images: PreparedImages, task: TrainingTask, ranks: int) -> TrainConfig:
    """Return the settings of the project's own loop for a training."""
    values, options = task.values, scale.options
    epochs, batch = int(options["epochs"]), int(options["batch"])
    updates = epochs * max(1, images.train // batch)
    return TrainConfig(
        network="inception",
        checkpoint_from="",
        method=_ALSO[task.method],  # type: ignore[arg-type]
        processes=ranks,
        device="auto",
        seed=task.seed,
        epochs=epochs,
        batch=batch,
        accumulate=1,
        batch_norm="rank",
        lr=float(values["lr"]),
        momentum=0.9,
        weight_decay=1e-4,
        warmup=round(float(values["warmup"]) * updates),
        patience=int(options["patience"]),
        drop=0.1,
        cooldown=0.0,
        augment=4,
        flip=True,
        augment_by="",
        width=int(options["width"]),
        hidden=128,
        period=int(values.get("period", 100)),
        samples=int(options["samples"]),
        damping=float(values.get("damping", 0.1)),
        step_limit=float(values.get("step_limit", 0.003)),
        init=str(values.get("init", "balanced")),  # type: ignore[arg-type]
    )


def run(scale: Scale, examples: PreparedImages, task: TrainingTask) -> Curve:
    """Train once under torchrun."""
    ranks = ranks_here(int(scale.options["ranks"]))
    return train(config_of(scale, examples, task, ranks), examples.splits, task, ranks)


def network(scale: Scale, normalised: bool) -> nn.Module:
    """Return the Inception of a scale, for the classes of ImageNet."""
    return inception(
        NetworkSignature(
            input_shape=(3, scale.size, scale.size),
            output_shape=(1000,),
            classes=(),
            mean=(0.0,) * 3,
            deviation=(1.0,) * 3,
            width=int(scale.options["width"]),
            hidden=128,
            batch_norm=normalised,
        )
    )


def score(scale: Scale, curve: Curve) -> float:
    """Return the least validation error of a training."""
    return min((mark.figures["validation"] for mark in curve.marks), default=math.inf)


def _study(name: str) -> StudyPlan:
    method = METHODS[name]
    space = {key: kind for key, kind in method.space.items() if key in _SEARCHED}
    return StudyPlan(name, space, {"normalised": True}, (method.begin(normalised=True),))


def _scale(
    data: str, size: int, images: int, trials: int, seeds: int, options: Mapping[str, Any]
) -> Scale:
    return Scale(
        data=data,
        size=size,
        measured=images,
        examples=int(options["epochs"]) * images,
        marks=int(options["epochs"]),
        trials=trials,
        seeds=seeds,
        studies={name: _study(name) for name in ("sgd", "prong")},
        points={
            "bn-sgd": both("sgd", METHODS["sgd"].label)["bn-sgd"],
            "prong-bn": OURS["prong-bn"],
        },
        options=options,
    )


IMAGENET = Experiment(
    name="imagenet",
    figure="Figure 4c-d",
    question=(
        "Does PRONG⁺ train Inception with batch normalisation on ImageNet in fewer updates than "
        "batch normalisation alone?"
    ),
    stated=(
        Stated("validation error at the end: PRONG⁺", "28.9 %", "section 4.3"),
        Stated("validation error at the end: batch normalisation", "28.6 %", "section 4.3"),
        Stated("validation error at the end: SGD", "32.1 %", "section 4.3"),
        Stated("validation error after 10⁵ updates: PRONG⁺", "around 36 %", "section 4.3"),
        Stated("validation error after 10⁵ updates: BN alone", "46 %", "section 4.3"),
    ),
    chosen=(
        "The small scale only exercises the machinery: the sample has one image of each of the "
        "1,000 classes, from which the classes cannot be learnt. Its labels are three coarse ones "
        "made of the numbers of the classes: dog (118 classes, Chihuahua to Mexican hairless), "
        "other animal (280), no animal (602, people among them). Its errors say nothing of "
        "ImageNet's.",
        "The full scale has 64 × 64 pixels, not the paper's 224, and so 16 GB of fitted images. "
        "Class folders and tar shards of any size are read: a split that is large beside the "
        "machine's memory stays in its file, and the ranks read batches from there. The disk must "
        "hold the images as they came and three times the fitted ones.",
        "The network is the project's Inception, a quarter as wide as the paper's at 64 × 64 (a "
        "sixteenth at the small scale), trained by the project's own loop under torchrun: one rank "
        "for each GPU, or two without any. A batch of 256 images (small: 64) is split over the "
        "ranks, and each rank normalises with its own share.",
        "Varied by shifts of up to 4 pixels and mirroring; weight decay 0.0001; the rate is "
        "divided by 10 when the validation error has not fallen for 5 epochs.",
        "The validation split is the official one where there is a folder val beside train, else a "
        "fifth of the images. The training error is that of the last ten updates before.",
        "Seconds are of updates with the loading of their batches.",
    ),
    scales={
        "small": _scale(
            SAMPLE,
            32,
            700,
            2,
            2,
            {
                "epochs": 6,
                "batch": 64,
                "width": 8,
                "patience": 5,
                "ranks": 2,
                "samples": 256,
                "after": 30,
            },
        ),
        "full": _scale(
            WHOLE,
            64,
            1_281_167,
            6,
            1,
            {
                "epochs": 60,
                "batch": 256,
                "width": 32,
                "patience": 5,
                "ranks": 2,
                "samples": 1000,
                "after": 100_000,
            },
        ),
    },
    network=network,
    train=run,
    score=score,
    report=report,
    sources=(
        "imagenet_experiment",
        "imagenet_images",
        "torchrun_training",
        "pipelines/core/config.py",
        "pipelines/tasks",
        "pipelines/training",
    ),
    prepare=prepare,
    load=load,
)
