"""The orderings that the reports show, with every seed, at small scale on real digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.paper import paper_images as images
from pipelines.paper.autoencoder_experiment import AUTOENCODERS
from pipelines.paper.compared_methods import METHODS
from pipelines.paper.experiment import Curve, Experiment, Scale, TrainingTask
from pipelines.paper.fisher_experiment import FISHER
from pipelines.paper.relu_experiment import BATCH, RELU
from pipelines.systems.optuna.dimensions import Value

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SEEDS = range(3)


def _examples(experiment: Experiment, folder: Path) -> images.SplitImages:
    scale = experiment.scales["small"]
    images.prepare(scale.data, scale.size, images.ImagePlace(folder, folder, ""), folder)
    return images.load(folder)


def _train(
    experiment: Experiment,
    scale: Scale,
    examples: images.SplitImages,
    method: str,
    values: dict[str, Value],
    seed: int,
) -> Curve:
    curve = experiment.train(scale, examples, TrainingTask(method, values, seed, True))
    assert curve.reason == ""
    return curve


def test_fisher_the_first_reparametrisation_and_all_of_training(tmp_path: Path) -> None:
    scale = replace(FISHER.scales["small"], marks=3)
    examples = _examples(FISHER, tmp_path)
    rates = {"prong": 0.001, "sgd": 0.06, "rmsprop": 3e-4, "bn": 0.03}
    for seed in SEEDS:
        relative = {}
        for key, rate in rates.items():
            study = scale.studies[key]
            values = {**study.fixed, "lr": rate}
            curve = _train(FISHER, scale, examples, study.method, values, seed)
            series = [value for _, value in curve.series("condition")]
            start = curve.before.get("condition", series[0])
            relative[key] = [100 * value / start for value in series]
        assert relative["prong"][0] <= 5
        for key in ("sgd", "rmsprop", "bn"):
            pairs = zip(relative["prong"], relative[key], strict=True)
            assert all(ours < its for ours, its in pairs), (seed, key, relative)


def test_autoencoder_prong_is_ahead_of_first_order_methods(tmp_path: Path) -> None:
    scale = replace(AUTOENCODERS.scales["small"], marks=1)
    examples = _examples(AUTOENCODERS, tmp_path)
    for normalised in (False, True):
        for seed in SEEDS:
            found = {}
            for method in ("prong", "sgd", "rmsprop", "adamw"):
                values = METHODS[method].begin(normalised)
                curve = _train(AUTOENCODERS, scale, examples, method, values, seed)
                found[method] = curve.last.figures
            ours = found.pop("prong")
            for figure in ("train", "test"):
                assert all(ours[figure] < its[figure] for its in found.values()), found


def test_relu_prong_as_it_comes_is_ahead_of_the_adam_that_a_search_found(tmp_path: Path) -> None:
    """After 32 epochs; with batch normalisation and without."""
    scale = replace(RELU.scales["small"], marks=1)
    examples = _examples(RELU, tmp_path)
    adam: dict[str, Value] = {
        "lr": 0.0181, "schedule": "linear", "warmup": 0.05, "clip": 30.0, "normalised": True
    }  # fmt: skip
    for seed in SEEDS:
        error = {}
        for key, method, values in (
            ("adam", "adam", adam),
            ("prong", "prong", METHODS["prong"].begin(normalised=False)),
            ("prong+", "prong", METHODS["prong"].begin(normalised=True)),
        ):
            curve = _train(RELU, scale, examples, method, {**values, "batch": BATCH}, seed)
            error[key] = curve.last.figures["train"]
        assert error["prong+"] < error["prong"] < error["adam"], error
