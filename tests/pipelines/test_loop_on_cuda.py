"""A rank that trains on CUDA: the CPU's path to rounding, and checkpoints that go on to the bit.

What needs no second device runs on the CPU as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipelines.core.config import Params, TrainConfig
from pipelines.training import checkpoint
from pipelines.training.loop import Loop
from pipelines.training.parallel import TrainingRanks
from prong.layers.base import Whitened

pytest_plugins = ["networks"]
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)
HALFWAY = 8  # of a period of five: three steps' statistics are held


class _Enough(Exception):
    """So many steps were made."""


def _loop(settings: TrainConfig, prepared: Path, device: str, steps: int) -> Loop:
    """A loop that stops by itself, as a rank does when it is asked to."""

    def between(loop: Loop, _phase: str) -> None:
        if loop.step == steps:
            raise _Enough

    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return Loop(settings, prepared, TrainingRanks(0, 1, place), None, between)


def _run(loop: Loop) -> Loop:
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        pytest.raises(_Enough),
    ):
        loop.run()
    return loop


def _tensors(loop: Loop) -> dict[str, Tensor]:
    state = loop.state()
    shared = {f"{file}.{k}": v for file, part in state.shared.items() for k, v in part.items()}
    return {name: value.detach().cpu().clone() for name, value in (shared | state.own).items()}


def _without_signs(network: nn.Module) -> dict[str, Tensor]:
    """The state on the CPU, with P instead of its directions: a decomposition chooses signs."""
    state = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, Whitened) and layer.preconditioner is not None:
            state[f"{name}.precision_matrix"] = layer.preconditioner.whole().cpu()
    return state


def test_paths_are_compared_whatever_the_signs_of_directions(small: Params, prepared: Path) -> None:
    network = _run(_loop(replace(small.train, method="prong"), prepared, "cpu", HALFWAY)).network
    expected = _without_signs(network)
    directions = network.get_submodule("body.head.1").precision_matrix
    assert 0 < directions.shape[2] < directions.shape[1]
    directions[..., 0].neg_()
    found = _without_signs(network)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    directions[..., 0].mul_(1.1)
    assert not torch.allclose(
        _without_signs(network)["body.head.1.precision_matrix"],
        expected["body.head.1.precision_matrix"],
    )


@pytest.mark.parametrize("device", [CUDA])
def test_a_rank_on_cuda_takes_the_path_of_the_cpu(
    small: Params, prepared: Path, device: str
) -> None:
    # Not prong+ nor bn: a change of 3e-7 in their first weights, too, is 1e-2 after eight steps.
    settings = replace(small.train, method="prong")
    on_cpu, on_cuda = (
        _run(_loop(settings, prepared, place, HALFWAY)).network for place in ("cpu", device)
    )
    assert next(on_cuda.parameters()).is_cuda
    expected, found = _without_signs(on_cpu), _without_signs(on_cuda)
    assert expected.keys() == found.keys()
    for name, value in found.items():
        limit = 1e-3 * max(1.0, float(expected[name].abs().max()))
        assert float((value - expected[name]).abs().max()) <= limit, name


@pytest.mark.parametrize("method", ["prong", "prong+"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_rank_goes_on_to_the_bit_from_its_checkpoint(
    small: Params, prepared: Path, tmp_path: Path, device: str, method: str
) -> None:
    settings = replace(small.train, method=method)
    whole = _run(_loop(settings, prepared, device, 2 * HALFWAY))
    first = _run(_loop(settings, prepared, device, HALFWAY))
    state = first.state()
    assert any("scatter" in name for name in state.own)
    checkpoint.write(
        tmp_path,
        first.step,
        rank=0,
        ranks=1,
        barrier=first.ranks.barrier,
        meta=state.meta,
        shared=state.shared,
        numbers=state.numbers,
        own=state.own,
        keep=1,
    )
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    second = _loop(settings, prepared, device, 2 * HALFWAY)
    second.restore(saved)
    assert second.step == HALFWAY
    assert second.refreshes == first.refreshes
    _run(second)
    expected, found = _tensors(whole), _tensors(second)
    assert expected.keys() == found.keys()
    differing = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert differing == []
