"""The graph's numbers against others: float64 numpy on torch's own layers, and pytorch-ood."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from small_network import Data, Small, data, released

from pipelines.core.errors import UserError
from pipelines.drift import estimates, fit_drift
from pipelines.drift.candidates import auroc, candidates, chosen
from pipelines.systems.onnx import model_file
from pipelines.systems.onnx.drift_model import DriftModel

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def small() -> Small:
    return Small()


@pytest.fixture(scope="module")
def examples() -> Data:
    return data()


@pytest.fixture(scope="module")
def learnt(small: Small, examples: Data) -> fit_drift._Fit:
    """All signals, with means and covariances of the training examples."""
    model = model_file.parse(released(small))
    card = model_file.checked_card(model)
    with estimates.one_thread():
        found = fit_drift._Fit(model, card, fit_drift._probed(model, card))
        found.learn(examples.train)
    return found


@pytest.fixture(scope="module")
def file(small: Small, examples: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drift") / "drift.onnx"
    path.write_bytes(fit_drift.fit(released(small), examples.train, [examples.held_out]))
    return path


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 50))
def test_examples_are_spread_over_several_arrays_as_over_one(sizes: list[int], most: int) -> None:
    parts = np.split(np.arange(3 * sum(sizes)).reshape(-1, 3), np.cumsum(sizes)[:-1])
    found = fit_drift.spread_over(parts, most)
    np.testing.assert_array_equal(found, fit_drift.spread(np.concatenate(parts), most))


def _distance(values: Array, train: Array, centre: Array | None = None) -> Array:
    """(x − c)ᵀ (C + ε I)⁻¹ (x − c), by a solver and not by a factor."""
    centre = train.mean(axis=0) if centre is None else centre
    covariance = np.cov((train - train.mean(axis=0)).T, bias=True)
    covariance += estimates.DAMPING * covariance.diagonal().mean() * np.eye(len(covariance))
    off = (values - centre).reshape(-1, len(covariance))
    found: Array = (off * np.linalg.solve(covariance, off.T).T).sum(axis=1)
    return found.reshape(values.shape[:-1])


def _expected(small: Small, train: Array, labels: Array, asked: Array) -> dict[str, Array]:
    """Every signal anew, in float64, from what torch's hooks see."""
    seen, given = small.layer_inputs(train), small.layer_inputs(asked)
    found: dict[str, Array] = {}
    for at, name in enumerate(("convolution", "second")):
        before, now = (np.moveaxis(h[name], 1, -1) for h in (seen, given))
        channels = now.shape[-1]
        before, now = (h.reshape(len(h), -1, channels) for h in (before, now))
        flat = before.reshape(-1, channels)
        if channels == 1:
            squared = (now[..., 0] - flat.mean()) ** 2 / (flat.var() * (1 + estimates.DAMPING))
        else:
            squared = _distance(now, flat)
        found[f"mean at positions {at}"] = np.log(squared.mean(axis=1))
        found[f"maximum at positions {at}"] = np.log(squared.max(axis=1))
        pooled = [np.hstack([h.mean(axis=1), h.std(axis=1)]) for h in (before, now)]
        found[f"features {at}"] = np.log(_distance(pooled[1], pooled[0]))
    last, now = seen["dense"], given["dense"]
    found["features 2"] = np.log(_distance(now, last))
    logits = given["logits"]
    top = (logits - logsumexp(logits, axis=1, keepdims=True)).max(axis=1)
    found["softmax"] = np.log1p(-np.exp(top))
    for name, (old, new) in {
        "mahalanobis": (last, now),
        "mahalanobis++": tuple(h / np.linalg.norm(h, axis=1, keepdims=True) for h in (last, now)),
    }.items():
        means = np.stack([old[labels == k].mean(axis=0) for k in range(3)])
        within = old - means[labels]
        found[name] = np.min([_distance(new, within, mean) for mean in means], axis=0)
    found["relative mahalanobis"] = found["mahalanobis"] - _distance(now, last)
    return found


def test_every_signal_is_that_of_float64_numpy_on_torchs_layers(
    small: Small, examples: Data, learnt: fit_drift._Fit
) -> None:
    asked = np.concatenate([examples.held_out[:40], examples.other[:40]])
    found = learnt.measure(asked)
    expected = _expected(small, examples.train.inputs, examples.train.targets, asked)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.fixture
def pytorch_ood() -> Iterator[Any]:
    """Its two detectors, without the package around them, whose data sets need torchvision."""
    found = importlib.util.find_spec("pytorch_ood")
    if found is None:
        pytest.skip("pytorch-ood is not installed")
    (folder,) = found.submodule_search_locations or [""]
    before = set(sys.modules)
    for name, path in (("pytorch_ood", folder), ("pytorch_ood.detector", f"{folder}/detector")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [path]
    try:
        yield importlib.import_module("pytorch_ood.detector.rmd")
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "pytorch_ood":
                del sys.modules[name]


def test_distances_to_classes_are_those_of_pytorch_ood(
    small: Small, examples: Data, pytorch_ood: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = np.concatenate([examples.held_out, examples.other])
    before, now = (small.layer_inputs(x)["dense"] for x in (examples.train.inputs, asked))
    labels = examples.train.targets
    torch.set_default_dtype(torch.float64)
    try:
        given = torch.from_numpy(before), torch.from_numpy(labels)
        plain = pytorch_ood.Mahalanobis(None).fit_features(*given)
        relative = pytorch_ood.RMD(None).fit_features(*given)
        asked_for = torch.from_numpy(now)
        theirs = [d.predict_features(asked_for).numpy() for d in (plain, relative)]
    finally:
        torch.set_default_dtype(torch.float32)

    def damped(centred: Array) -> None:
        """Damp as they do: 1e-6 on the diagonal of the sum, not of the mean."""
        trace = (centred**2).sum() / centred.shape[1]
        monkeypatch.setattr(estimates, "DAMPING", 1e-6 / trace)

    damped(before - np.stack([before[labels == k].mean(axis=0) for k in range(3)])[labels])
    found = estimates.class_whitening(before, labels)
    assert found is not None
    off = (now[:, None] - found[0]) @ found[1].T
    distance = (off**2).sum(axis=-1).min(axis=-1)
    # Theirs is of sums and not means, and the plain one is halved.
    np.testing.assert_allclose(distance, 2 * len(before) * theirs[0], rtol=1e-6)
    damped(before - before.mean(axis=0))
    background = estimates.whitening(before)
    assert background is not None
    whole = (((now - background.centre) @ background.matrix.T) ** 2).sum(axis=1)
    np.testing.assert_allclose(distance - whole, len(before) * theirs[1], rtol=1e-5, atol=1e-5)


def test_the_file_scores_as_the_chosen_function_and_as_its_reference(
    examples: Data, learnt: fit_drift._Fit, file: Path
) -> None:
    drift = DriftModel.load(file)
    calibration, reference = examples.held_out[::2], examples.held_out[1::2]
    scores = candidates(learnt.measure(calibration), learnt.of_layers)
    assert set(scores) == set(drift.card.candidates)
    both = np.concatenate([reference, examples.other])
    expected = scores[drift.card.method].scores(learnt.measure(both))
    np.testing.assert_allclose(drift.scores(both), expected, rtol=1e-4)
    known = drift.scores(reference)
    np.testing.assert_allclose(drift.card.reference_scores, known, rtol=1e-4)
    assert np.mean(known > drift.card.threshold) == pytest.approx(0.05, abs=0.011)
    assert auroc(known, drift.scores(examples.other)) > 0.95
    assert len(drift.card.reference_answers[0]) == 3
    assert drift.card.reference_labels == tuple(
        np.argmax(drift.card.reference_answers, axis=1).tolist()
    )


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_a_score_does_not_depend_on_its_batch(file: Path, examples: Data, batch: int) -> None:
    drift = DriftModel.load(file)
    whole = drift.scores(examples.held_out)
    np.testing.assert_allclose(drift.scores(examples.held_out, batch=batch), whole, rtol=1e-4)
    assert drift.scores(examples.held_out[:0]).shape == (0,)
    with pytest.raises(UserError, match=r"takes uint8 \[n, 1, 8, 8\]"):
        drift.scores(examples.held_out[:, :, 1:])


def test_every_candidate_is_the_same_in_the_graph_as_in_numpy(
    examples: Data, learnt: fit_drift._Fit
) -> None:
    scores = candidates(learnt.measure(examples.held_out), learnt.of_layers)
    asked = np.concatenate([examples.held_out, examples.other])
    signals = learnt.measure(asked)
    tensors = [score.add_to(learnt.graph, learnt.signals) for score in scores.values()]
    found = learnt.run([learnt.graph.stacked(tensors)], asked)
    rows = np.concatenate([part[0] for part in found])
    for at, score in enumerate(scores.values()):
        np.testing.assert_allclose(rows[:, at], score.scores(signals), rtol=1e-7, atol=1e-7)


def test_equal_inputs_give_equal_bytes_on_any_number_of_threads(
    small: Small, examples: Data, file: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        again = fit_drift.fit(released(small), examples.train, [examples.held_out])
        assert torch.get_num_threads() != before
    finally:
        torch.set_num_threads(before)
    assert again == file.read_bytes()


def test_the_choice_is_the_best_that_lacks_nothing_to_the_softmax() -> None:
    softmax, other = {"a": 0.8, "b": 0.6}, {"a": 0.6, "b": 0.85}
    assert chosen({"softmax": softmax, "other": other}) == "softmax"
    assert chosen({"softmax": softmax, "other": {"a": 0.8, "b": 0.85}}) == "other"
    assert chosen({"layers": {}, "mahalanobis": {}}) == "layers"


def test_auroc_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    inside, outside = random.integers(0, 9, 50), random.integers(3, 12, 70)
    truth = np.r_[np.zeros(50), np.ones(70)]
    expected = roc_auc_score(truth, np.r_[inside, outside])
    assert auroc(inside, outside) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.metadata_props.pop(), "one entry"),
        (lambda model: model.graph.output[0].type.tensor_type.shape.dim.pop(), "inputs and"),
        (lambda model: setattr(model.graph.node[0], "op_type", "RandomNormalLike"), "may not"),
        (lambda model: helper.set_model_props(model, {"drift": "[]"}), "not a drift graph"),
        (
            lambda model: helper.set_model_props(
                model,
                {"drift": model.metadata_props[0].value.replace('"threshold":', '"threshold":1')},
            ),
            "",
        ),
    ],
)
def test_what_is_not_a_drift_graph_is_refused(
    file: Path, tmp_path: Path, change: Any, said: str
) -> None:
    model = model_file.load(file)
    change(model)
    path = tmp_path / "drift.onnx"
    path.write_bytes(model.SerializeToString())
    if said:
        with pytest.raises(UserError, match=said):
            DriftModel.load(path)
    else:  # another number is as good; its hash is what tells
        DriftModel.load(path)


def test_a_file_of_another_model_or_a_damaged_one_is_refused(
    small: Small, file: Path, tmp_path: Path
) -> None:
    own = DriftModel.load(file).card.model_sha256
    assert DriftModel.load(file, model=own).card.model_sha256 == own
    with pytest.raises(UserError, match="belongs to another model"):
        DriftModel.load(file, model="0" * 64)
    for content in (b"", b"no model", file.read_bytes()[:-100], released(small)):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"not a drift graph|may not"):
            DriftModel.load(tmp_path / "bad.onnx")
    with pytest.raises(UserError, match="cannot be read"):
        DriftModel.load(tmp_path / "absent.onnx")
