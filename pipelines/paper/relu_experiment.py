"""The ReLU auto-encoder with which newer second-order methods are compared, beside tuned Adam.

No figure of the paper; the levels are published ones of K-FAC and K-BFGS.
"""

from __future__ import annotations

from pipelines.paper.autoencoder_experiment import NARROW, network, run, score
from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import OURS, Experiment, Point, Scale, StudyPlan, both
from pipelines.paper.networks import AUTOENCODER
from pipelines.paper.relu_report import report

BATCH = 1000
EPOCHS = 32
_LONGER = 8
"""Adam is trained for so many times the epochs besides, to see when it gets there."""


def _scale(
    data: str, widths: tuple[int, ...], images: int, trials: int, levels: list[list[float]]
) -> Scale:
    studies = {}
    for name in ("prong", "adam"):
        method = METHODS[name]
        space = {key: kind for key, kind in method.space.items() if key != "batch"}
        studies[name] = StudyPlan(name, space, {"batch": BATCH}, method.beginnings)
    return Scale(
        data=data,
        size=28,
        measured=images,
        examples=EPOCHS * images,
        marks=EPOCHS,
        trials=trials,
        seeds=3,
        studies=studies,
        points={
            "untuned": Point(
                "PRONG, untuned",
                "prong",
                values={"normalised": False, "lr": 0.03, "batch": BATCH},
            ),
            **OURS,
            **both("adam", "Adam"),
            "long-adam": Point(
                f"Adam, {_LONGER} times the epochs",
                "adam",
                "adam",
                {"normalised": False},
                {"longer": _LONGER},
            ),
            "long-bn-adam": Point(
                f"BN + Adam, {_LONGER} times the epochs",
                "adam",
                "adam",
                {"normalised": True},
                {"longer": _LONGER},
            ),
        },
        options={
            "widths": list(widths),
            "nonlinearity": "relu",
            "error": "cross-entropy",
            "epoch": images,
            "levels": levels,
        },
    )


RELU = Experiment(
    name="relu-autoencoder",
    figure="Beyond the paper's figures",
    question=(
        "How many epochs, and how much of tuned Adam's time, does PRONG take to the levels that "
        "newer second-order methods are published with?"
    ),
    stated=(),
    chosen=(
        "The network of `autoencoder` with ReLU, batches of 1,000 images, cross-entropy of pixels "
        "summed over an image. It is measured on all training images after each epoch, in "
        "evaluation mode; no network can be below the entropy of the pixels (45.76 on MNIST).",
        "The levels: training cross-entropy 60 within 12 epochs and 55 within 32, the best "
        "published of K-FAC and K-BFGS. The small scale has fewer images, so its levels are none "
        "of theirs: there PRONG's end is compared with Adam's alone.",
        "Both methods are searched with equal trials of 32 epochs, batch normalisation included, "
        f"judged by the training error at the end. Adam is trained for {_LONGER} times the epochs "
        "besides, with the same settings and its schedule stretched.",
    ),
    scales={
        "small": _scale("digits", NARROW, 4000, 6, []),
        "full": _scale("mnist", AUTOENCODER, 60_000, 20, [[60.0, 12.0], [55.0, 32.0]]),
    },
    network=network,
    train=run,
    score=score,
    report=report,
    sources=("autoencoder_experiment", "relu_experiment"),
)
