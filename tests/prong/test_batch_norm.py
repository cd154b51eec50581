"""Batch normalisation over all ranks is that of the whole batch, wherever its samples lie."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from exact import reparametrizer
from processes import groups, run, share
from torch import nn

import prong
from prong.distributed.batch_norm import SynchronisedBatchNorm2d

CASES = {
    "1d": (nn.BatchNorm1d, (7, 3), {}),
    "1d with length": (nn.BatchNorm1d, (7, 3, 4), {"momentum": None}),
    "2d": (nn.BatchNorm2d, (7, 3, 4, 2), {}),
    "2d plain": (nn.BatchNorm2d, (7, 3, 4, 2), {"affine": False, "track_running_stats": False}),
    "3d": (nn.BatchNorm3d, (7, 3, 2, 2, 2), {"eps": 1e-3, "bias": False}),
}


def drawn(shape, steps=2):
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randn(shape, generator=generator, dtype=torch.float64) + add for add in (30, 0))
        for _ in range(steps)
    ]


def layer(kind, options):
    torch.manual_seed(0)
    made = kind(3, **options).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def passes(module, shape, part):
    """Two training steps and an evaluation: outputs, gradients and the state after them."""
    found = []
    for x, weights in drawn(shape):
        rows = x[part].requires_grad_()
        output = module(rows)
        (output.sin() * weights[part]).sum().backward()
        found += [output.detach(), rows.grad]
    state = dict(module.state_dict())
    gradients = [p.grad for p in module.parameters()]
    module.eval()
    return found, gradients, state, module(x[part]).detach()


def _batch_norms(rank, size):
    results = {}
    for number, group in groups((1, 2, 3)).items():
        if rank >= number:
            continue
        for name, (kind, shape, options) in CASES.items():
            plain = layer(kind, options)
            keys = list(plain.state_dict())
            module = prong.synchronise_batch_norm(plain, group)
            assert module is plain
            assert list(module.state_dict()) == keys
            part = share(shape[0], rank, number)
            results[number, name] = passes(module, shape, part)
            with pytest.raises(ValueError, match=r"expected .*D input"):
                module.train()(torch.randn(2, dtype=torch.float64))
        if number == 3:
            one = prong.synchronise_batch_norm(layer(nn.BatchNorm1d, {}), group)
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                one(torch.randn(int(rank == 1), 3, dtype=torch.float64))
            none = one(torch.randn(0, 3, dtype=torch.float64))
            assert none.shape == (0, 3)
            assert torch.equal(one.running_mean, torch.zeros(3, dtype=torch.float64))
            half = prong.synchronise_batch_norm(nn.BatchNorm1d(3), group)
            assert half(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16
    return results


def test_it_equals_the_whole_batch_on_one_process(tmp_path):
    ranks = run(tmp_path / "3", 3, _batch_norms)
    for number in (1, 2, 3):
        for name, (kind, shape, options) in CASES.items():
            expected = passes(layer(kind, options), shape, slice(None))
            parts = [found[number, name] for found in ranks[:number]]
            tensors = [torch.cat(pieces) for pieces in zip(*(p[0] for p in parts), strict=True)]
            gradients = [sum(pieces) for pieces in zip(*(p[1] for p in parts), strict=True)]
            # Without running statistics evaluation takes the local batch's, as torch's own does.
            evaluated = [torch.cat([p[3] for p in parts])] if "plain" not in name else []
            for found, whole in zip(
                [*tensors, *gradients, *evaluated],
                [*expected[0], *expected[1], *([expected[3]] if evaluated else [])],
                strict=True,
            ):
                assert (found - whole).abs().max() <= 1e-12 * max(1, whole.abs().max()), name
            for key, value in expected[2].items():
                for part in parts:
                    assert torch.equal(part[2][key], parts[0][2][key])
                    assert (part[2][key] - value).abs().max() <= 1e-12 * max(1, value.abs().max())


def test_alone_it_is_the_plain_module_and_the_rest_of_prong_works_on_it():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
    model = prong.synchronise_batch_norm(copy.deepcopy(plain))
    assert type(model[1]) is SynchronisedBatchNorm2d
    x = torch.randn(8, 2, 5, 5)
    assert torch.equal(model(x), plain(x))
    model[1].eval()
    assert torch.equal(
        model[1](x[:, :1].expand(-1, 4, -1, -1)), model.eval()[1](x[:, :1].expand(-1, 4, -1, -1))
    )
    prong.whiten(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    natural = reparametrizer(model, optimizer)
    natural.initialize([x])
    assert [status.kind for status in natural.coverage][1] == "SynchronisedBatchNorm2d"
    folded = prong.fold(model).eval()
    assert (folded(x) - model.eval()(x)).abs().max() < 1e-5
    assert list(folded.state_dict()) == list(plain.state_dict())
    torch.save(model, io.BytesIO())
    with pytest.raises(TypeError, match="Module is needed"):
        prong.synchronise_batch_norm("model")
