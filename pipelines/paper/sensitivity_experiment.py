"""Fig. 3a-b: what ε, the rate, T and the initialisation do to the training of the auto-encoder."""

from __future__ import annotations

from pipelines.paper.autoencoder_experiment import NARROW, network, run, score
from pipelines.paper.experiment import Experiment, Point, Scale, Stated, Values
from pipelines.paper.networks import AUTOENCODER
from pipelines.paper.sensitivity_report import report

DAMPINGS = (0.01, 0.1, 1.0)
SMALL_RATES = (3e-4, 3e-3, 3e-2)
RATES = (0.003, 0.03, 0.1)
INITS = {"whitened": "whitened start", "preserve": "fan-in start"}
_BASE: Values = {"normalised": False, "lr": 0.03, "batch": 128}


def _points(periods: tuple[int, ...]) -> dict[str, Point]:
    """Return all points; the key's first part says which chart a point belongs to."""
    points: dict[str, Point] = {}

    def add(key: str, label: str, **values: float | str | bool) -> None:
        points[key] = Point(label, "prong", values={**_BASE, **values})

    # The paper's algorithm has no step control, and the summed loss asks for small rates then.
    for number, damping in enumerate(DAMPINGS):
        for place, rate in enumerate(SMALL_RATES):
            add(f"damping-{number}-{place}", f"ε {damping:g}, rate {rate:g}",
                damping=damping, lr=rate, step_limit=0.0, init="whitened")  # fmt: skip
    for period in periods:
        for init, said in INITS.items():
            shown = "∞" if period == periods[-1] else f"{period:g}"
            label = f"T {shown}, {said}"
            add(f"period-{period}-{init}", label, period=period, init=init, early=False)
    add("step-reset", "momentum reset", momentum="reset")
    add("step-carried", "momentum carried over", momentum="gradient")
    for rate in RATES:
        add(f"step-none-{round(1000 * rate)}", f"no step control, rate {rate:g}",
            step_limit=0.0, lr=rate)  # fmt: skip
        add(f"step-control-{round(1000 * rate)}", f"step control, rate {rate:g}", lr=rate)
    return points


def _scale(
    data: str, widths: tuple[int, ...], examples: int, periods: tuple[int, ...], seeds: int
) -> Scale:
    return Scale(
        data=data,
        size=28,
        measured=2000,
        examples=examples,
        marks=10,
        trials=1,
        seeds=seeds,
        studies={},
        points=_points(periods),
        options={"widths": list(widths)},
    )


SENSITIVITY = Experiment(
    name="sensitivity",
    figure="Figure 3a-b",
    question=(
        "How sensitive is PRONG to the regularisation ε, the rate and the period T, and what does "
        "the whitened initialisation contribute?"
    ),
    stated=(
        Stated(
            "a lower ε at small rates",
            '"can yield significant speedups"',
            "section 4.1, of Fig. 3a",
        ),
        Stated(
            "a high maximum multiplier of the rate",
            '"learning becomes extremely sensitive"; unstable combinations are omitted',
            "section 4.1, of Fig. 3a",
        ),
        Stated(
            "whitened initialisation beside a standard fan-in one",
            '"effectiveness of the whitening reparametrization as a simple initialization scheme"',
            "section 4.1, of Fig. 3b",
        ),
        Stated(
            "T excessively large",
            "performance can degrade at T = 10⁵",
            "section 4.1, of Fig. 3b",
        ),
    ),
    chosen=(
        "The network and the loss are those of `autoencoder`, without batch normalisation, at a "
        "constant rate and batches of 128; nothing is searched.",
        "ε × rate: without step control, as in the paper; the summed loss asks for small rates.",
        "T × initialisation: with step control at rate 0.03. The first period is not shortened. "
        '"Whitened" draws V from the fan-in law, "fan-in" draws W from it and keeps the '
        "function. The largest T is longer than the training: ∞.",
        "Beyond the figure: momentum reset against carried over, and with step control against "
        "without.",
    ),
    scales={
        "small": _scale("digits", NARROW, 128 * 150, (10, 100, 1000), seeds=2),
        "full": _scale("mnist", AUTOENCODER, 128 * 4800, (10, 100, 1000, 100_000), seeds=3),
    },
    network=network,
    train=run,
    score=score,
    report=report,
    sources=("autoencoder_experiment", "sensitivity_experiment"),
)
