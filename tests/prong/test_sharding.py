"""Weights of which a rank holds a part are refused by name; others may be sharded."""

from __future__ import annotations

import pytest
import torch
from exact import reparametrizer
from processes import run
from torch import nn

import prong


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def refused(model, **options):
    with pytest.raises(ValueError, match="DistributedDataParallel") as caught:
        prong.whiten(model, **options)
    return str(caught.value)


def _sharded(rank, size):
    import torch.distributed.tensor.parallel as tensor_parallel
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    mesh = init_device_mesh("cpu", (size,))
    found = {}
    found["fully_shard"] = refused(fully_shard(network(), mesh=mesh))
    model = network()
    fully_shard(model[2], mesh=mesh)
    found["one layer"] = refused(model)
    # What stays plain may be sharded.
    prong.whiten(model, exclude="2")
    natural = reparametrizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    found["kinds"] = [(each.kind, each.whitened, each.reason) for each in natural.coverage]
    model = network()
    colwise = {"0": tensor_parallel.ColwiseParallel()}
    tensor_parallel.parallelize_module(model, mesh, colwise)
    found["tensor parallel"] = refused(model)
    prong.whiten(model, include="2")
    for shard in (
        lambda whitened: fully_shard(whitened[0], mesh=mesh),
        lambda whitened: fully_shard(whitened, mesh=mesh),
    ):
        model = prong.whiten(network())
        shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match=r"0\.weight is a DTensor"):
            reparametrizer(model, optimizer)
    wrapped = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    found["fsdp1"] = refused(wrapped)
    with pytest.raises(ValueError, match="wrapped by FullyShardedDataParallel"):
        reparametrizer(
            FullyShardedDataParallel(prong.whiten(network()), device_id=torch.device("cpu")),
            optimizer,
        )
    return found


def test_a_sharded_weight_is_refused_by_name(tmp_path):
    for found in run(tmp_path / "2", 2, _sharded):
        assert "model: 0.weight is a DTensor (S(0))" in found["fully_shard"]
        assert "model: 2.weight is a DTensor" in found["one layer"]
        assert "exclude=" in found["one layer"]
        assert "model: 0.weight is a DTensor" in found["tensor parallel"]
        assert "model: it is wrapped by FullyShardedDataParallel" in found["fsdp1"]
        assert found["kinds"] == [
            ("WhitenedLinear", True, ""),
            ("FSDPLinear", False, "excluded"),
        ]
