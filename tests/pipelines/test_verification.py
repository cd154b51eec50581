from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.files import read_json
from pipelines.systems.onnx.runtime import VERSION, providers
from pipelines.training import network
from pipelines.training.network import load
from pipelines.verification.verify import BATCHES, compare, verify

if TYPE_CHECKING:
    from networks import Exported, Trained

pytest_plugins = ["networks"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def onnx(exported: Exported) -> Path:
    return exported("prong+")


def test_whitened_folded_and_onnx_agree_at_every_batch(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    out = tmp_path / "verification.json"
    result = verify(trained("prong+"), prepared, onnx, small.verify, out)
    assert read_json(out) == result
    assert result["provider"] == "cpu"
    assert result["onnxruntime"] == VERSION
    assert result["images"] == small.verify.images
    found = {(c["first"], c["second"], c["batch"]): c for c in result["comparisons"]}
    pairs = [("whitened", "folded"), ("whitened", "onnx"), ("folded", "onnx")]
    assert set(found) == {(*pair, batch) for pair in pairs for batch in (1, 2, 7, 256)}
    assert all(c["labels"] == 0 for c in found.values())
    # Not zero, or the networks would be one and the same.
    assert 0 < result["largest_difference"] < 1e-5 < small.verify.limit
    assert result["largest_difference"] == max(c["difference"] for c in found.values())


def test_a_difference_over_the_limit_fails_with_the_table(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    out = tmp_path / "verification.json"
    config = replace(small.verify, limit=1e-9)
    with pytest.raises(UserError, match=r"verify\.limit = 1e-09") as found:
        verify(trained("prong+"), prepared, onnx, config, out)
    assert str(found.value).count("whitened – folded") == len(BATCHES)
    assert not out.exists()


def test_other_weights_than_those_exported_fail(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    """One per cent in one layer is enough to be seen."""
    spec, changed = load(trained("prong+"))
    state = changed.state_dict()
    name = next(name for name in state if name.endswith("head.1.weight"))
    state[name] = state[name] * 1.01
    network.save(tmp_path / "changed", spec, state)
    with pytest.raises(UserError, match="the networks disagree"):
        verify(tmp_path / "changed", prepared, onnx, small.verify, tmp_path / "out.json")


def test_a_file_of_another_network_is_refused(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    spec, _ = load(trained("sgd"))
    form = replace(spec.form, classes=(*spec.form.classes, "ten"))
    other = replace(spec, form=form, output_shape=(11,))
    network.save(tmp_path / "other", other, network.build(other).state_dict())
    with pytest.raises(UserError, match=r"differ in classes \(10 and 11\).*rerun export"):
        verify(tmp_path / "other", prepared, onnx, small.verify, tmp_path / "out.json")


@pytest.mark.skipif("cuda" in providers().working, reason="there is a CUDA device")
def test_cuda_asked_for_and_absent_fails(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    config = replace(small.verify, provider="cuda")
    with pytest.raises(UserError, match=r"verify\.provider = .cuda.: CUDA asked for and absent"):
        verify(trained("prong+"), prepared, onnx, config, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif("cuda" not in providers().working, reason="no CUDA device")
def test_cuda_is_within_the_limit(
    trained: Trained, prepared: Path, onnx: Path, small: Params, tmp_path: Path
) -> None:
    config = replace(small.verify, provider="cuda")
    result = verify(trained("prong+"), prepared, onnx, config, tmp_path / "out.json")
    assert result["provider"] == "cuda"


IMAGES = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)


def answer(rows: list[list[float]]) -> Callable[[NDArray[np.uint8], int], NDArray[np.float32]]:
    table = np.array(rows, np.float32)
    return lambda images, batch: table[images[:, 0, 0, 0] % len(table)]


def test_a_label_may_differ_only_between_tied_logits() -> None:
    clear = [[100.0, 0.0, 1.0]]
    networks = {
        "first": answer([*clear, [50.0, 50.001, 0.0], [5.0, 6.0, 0.0]]),
        "second": answer([*clear, [50.001, 50.0, 0.0], [6.0, 5.0, 0.0]]),
    }
    found = compare(networks, IMAGES, limit=1e-4, labels=True)
    assert [c.batch for c in found] == list(BATCHES)
    small_batch = found[0]
    assert (small_batch.ties, small_batch.labels) == (4, 4)
    assert small_batch.difference == pytest.approx(1 / 100)


def test_an_answer_that_is_not_a_number_is_over_every_limit() -> None:
    networks = {"first": answer([[1.0, 0.0]]), "second": answer([[float("nan"), 0.0]])}
    found = compare(networks, IMAGES, limit=1e-4, labels=True)
    assert not any(c.difference <= 1e9 for c in found)


def test_few_images_are_repeated_up_to_the_batch() -> None:
    seen: list[tuple[int, int]] = []

    def network(images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
        seen.append((len(images), batch))
        return np.ones((len(images), 2), np.float32)

    found = compare({"first": network, "second": network}, IMAGES[:5], limit=1e-4, labels=True)
    assert seen[::2] == [(5, 1), (5, 2), (7, 7), (256, 256)]
    assert {c.images for c in found} == {5}
