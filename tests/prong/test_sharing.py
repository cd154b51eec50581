"""Ranks share a reparametrisation: the same bits on all, the answer of one process, few numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import pytest
import torch
import torch.distributed as dist
from exact import EXACT, reparametrizer
from merged_moments import assert_moments_of, gathered
from processes import groups, run, share
from shared_runs import BATCH, ON_TWO, QUICK, SIZES, SLOW, STEPS, halves, loss, network
from small_runs import WIDE, assert_close, assert_same_bits, sgd
from torch import nn

import prong
from prong.distributed.merging import Merge
from prong.distributed.ranks import Ranks
from prong.linalg.triangle import triangle_size
from prong.refresh.collect import first_batches
from prong.refresh.exchange import assignment
from prong.refresh.result import LENGTH


def tensors_of(optimizer):
    return [
        (index, key, torch.as_tensor(value).clone())
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in sorted(state.items())
        if value is not None
    ]


def plain_report(report):
    """Everything but the rank's own time; a string, since not a number equals nothing."""
    return str(dataclasses.replace(report, seconds=0).as_dict())


def trained(group, rank, size, options, make, dtype):
    model = prong.synchronise_batch_norm(prong.whiten(network(dtype)), group)
    parallel = model
    if size > 1:
        parallel = nn.parallel.DistributedDataParallel(model, process_group=group)
        parallel.register_comm_hook(group, prong.sum_by_parameter)
    optimizer = make(model.parameters())
    options = {**EXACT, "period": 3, "samples": 2 * BATCH, "process_group": group, **options}
    natural = reparametrizer(parallel, optimizer, **options)
    part = share(BATCH // 2, rank, size)
    init = "whitened" if natural.mode == "preconditioned" else "preserve"
    reports = [
        natural.initialize(
            [half[part] for i in range(2) for half in halves(98 + i, dtype)[0]], init
        )
    ]
    for step in range(STEPS):
        (x, other_x), (y, other_y) = halves(step, dtype)
        with contextlib.nullcontext() if size == 1 else parallel.no_sync():
            loss(parallel(x[part]), y[part]).backward()
        loss(parallel(other_x[part]), other_y[part]).backward()
        optimizer.step()
        optimizer.zero_grad()
        reports.append(natural.step())
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": tensors_of(optimizer),
        "reports": [plain_report(report) for report in reports if report is not None],
        "owners": [[layer.rank for layer in r.layers.values()] for r in reports if r is not None],
        "assigned": assignment(natural.units, natural.settings, size).owners,
        "folded": prong.fold(model).state_dict(),
        "damping": {} if natural.diagonal is None else natural.diagonal.damping,
    }


def _trained(rank, size, cases, sizes):
    found = {}
    for number, group in groups(sizes).items():
        for name, (options, make, _) in cases.items():
            if rank < number:
                dtype = torch.float32 if name == "float32" else WIDE
                found[number, name] = trained(group, rank, number, options, make, dtype)
    return found


def check(ranks, cases, sizes):
    for name, (_, _, comparable) in cases.items():
        for number in sizes:
            first = ranks[0][number, name]
            assert any("'updated': True" in report for report in first["reports"]), name
            for found in (each[number, name] for each in ranks[1:number]):
                assert found["reports"] == first["reports"], name
                assert_same_bits(found["state"], first["state"], (number, name))
                assert [each[:2] for each in found["optimizer"]] == [
                    each[:2] for each in first["optimizer"]
                ]
                for (_, key, value), (*_, other) in zip(
                    first["optimizer"], found["optimizer"], strict=True
                ):
                    assert torch.equal(value, other), (number, name, key)
                assert_same_bits(found["damping"], first["damping"], (number, name))
            assert {rank for ranks_ in first["owners"] for rank in ranks_} == set(
                first["assigned"]
            ), name
            if comparable:
                alone = ranks[0][1, name]["folded"]
                assert_close(first["folded"], alone, 1e-10, (number, name))


def _quick(rank, size):
    found = _trained(rank, size, QUICK, (1, 4)) | _trained(rank, size, ON_TWO, (2,))
    found["volume"] = _volume(rank, size)
    found["failures"] = [_failures(rank, size, mode) for mode in ("fold", "preconditioned")]
    found["batches"] = _batches(rank, size)
    found["moments"] = _union(rank, size)
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run(tmp_path_factory.mktemp("ranks") / "4", 4, _quick)


def test_all_ranks_hold_the_same_bits_and_any_number_of_them_one_answer(quick):
    check(quick, QUICK, (1, 4))
    check(quick, ON_TWO, SIZES)
    owners = quick[0][4, "preconditioned"]["owners"]
    assert len({rank for each in owners for rank in each}) == 4
    notes = [report for report in quick[0][4, "lost state"]["reports"] if "was dropped" in report]
    assert len(notes) > 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_combination_of_options_holds_the_same_bits(tmp_path):
    cases = QUICK | SLOW
    check(run(tmp_path / "4", 4, _trained, cases, SIZES), cases, SIZES)


@contextlib.contextmanager
def counted():
    """How many numbers each collective is handed, by name."""
    originals = {
        name: getattr(dist, name) for name in ("all_reduce", "reduce", "broadcast", "all_gather")
    }
    counts = dict.fromkeys(originals, 0)

    def counting(name, tensor, *arguments, **keywords):
        counts[name] += tensor.numel()
        return originals[name](tensor, *arguments, **keywords)

    for name in originals:
        setattr(dist, name, functools.partial(counting, name))
    try:
        yield counts
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _volume(rank, size):
    """Numbers that a reparametrisation sends, by collective, and those that it should."""
    found = {}
    for name, options, form in (
        ("preconditioned", {"mode": "preconditioned"}, triangle_size),
        ("cholesky", {"root": "cholesky"}, triangle_size),
        ("zca", {"root": "zca"}, triangle_size),
        ("pca", {"root": "pca"}, lambda n: n * n),
    ):
        model = prong.whiten(network())
        optimizer = sgd(model.parameters())
        options = {**EXACT, "period": 2, "samples": 2 * BATCH, **options}
        natural = reparametrizer(model, optimizer, automatic=False, **options)
        for step in range(2):
            loss(model(halves(step)[0][0]), halves(step)[1][0]).backward()
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            with counted() as counts:
                natural.step()
        layers = [unit.layer.mean.shape for unit in natural.units]
        moved = sum(p.numel() for unit in natural.units for p in unit.parameters)
        numbers = LENGTH * len(natural.units)
        # The second linear layer's weight serves twice.
        features = sum(groups * size for groups, size in layers)
        expected = {
            "all_reduce": 6 * len(layers) + features,
            "reduce": sum(groups * triangle_size(size) for groups, size in layers),
            "broadcast": sum(groups * form(size) for groups, size in layers)
            + features + 2 * moved + numbers,
            "all_gather": 0,
        }  # fmt: skip
        found[name] = counts, expected
    return found


def test_a_refresh_sends_triangles(quick):
    for name, (counted, expected) in quick[0]["volume"].items():
        assert counted == expected, name


def equal(one, other):
    return one is not None and torch.equal(one, other)


def _failures(rank, size, mode):
    model = prong.whiten(network())
    optimizer = sgd(model.parameters())
    options = {**EXACT, "period": 9, "samples": 99, "mode": mode}
    natural = reparametrizer(model, optimizer, **options)
    model[4].weight.requires_grad_(False)
    natural.gathering.stop()
    natural.gathering.plan(natural.steps)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[6](torch.randn(0, 33, dtype=WIDE))
    model[8](torch.randn(0, 33, dtype=WIDE))
    model[0](halves(rank)[0][0])
    model[9](torch.randn(5, 33, dtype=WIDE))
    if rank == 1:
        model[9].moments.scatter[0, 0, 5] = torch.inf
    report = natural.refresh()
    assert not any(layer.moments is not None for layer in natural._layers())
    after = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name[0] for name in after if not equal(before.get(name), after[name])}
    reasons = {name: (each.updated, each.reason) for name, each in report.layers.items()}
    return plain_report(report), reasons, after, changed


def test_a_failure_is_the_same_on_all_ranks(quick):
    for index in range(2):
        text, reasons, state, changed = quick[0]["failures"][index]
        assert reasons == {
            "0": (True, ""),
            "4": (False, "frozen"),
            "6": (False, "no finite sample was seen"),
            "9": (False, "the decomposition failed"),
        }
        assert changed == {"0"}
        for each in quick[1:]:
            assert each["failures"][index][0] == text
            assert_same_bits(each["failures"][index][2], state)


def _batches(rank, size):
    ranks, cpu = Ranks(), torch.device("cpu")
    sizes = [[3, 2, 4, 9], [0, 1, 1, 9], [5, 5, 5], [0, 0, 9, 9]][rank]
    batches = [torch.zeros(size) for size in sizes]
    counts = [len(first_batches(batches, wanted, cpu, ranks)) for wanted in (1, 8, 9, 16, 17, 99)]
    if rank == 0:  # Alone by itself: nobody answers.
        counts.append(len(first_batches(batches, 8, cpu)))
    with pytest.raises(ValueError, match="none on at least one of the ranks"):
        first_batches(batches[: 3 * (rank != 2)], 5, cpu, ranks)
    return counts


def test_all_ranks_take_equally_many_batches(quick):
    # 8, 16 and 35 examples after one, two and three rounds; then the third rank has no more.
    together = [1, 1, 2, 2, 3, 3]
    assert [each["batches"] for each in quick] == [[1, 1, 2, 2, 3, 3, 3], *[together] * 3]


def _union(rank, size):
    """The same over real processes: what the owner has of all samples."""
    sizes = [[4, 0, 1], [], [0], [7, 2]]
    ranks, samples = gathered(sizes, 5)
    merge = Merge([ranks[rank]], WIDE)
    merge.send(Ranks().sum_(merge.sums), Ranks(), 2)
    if rank == 2:
        moments = merge.moments()
        assert_moments_of(moments.count, moments.mean, moments.scatter, samples)
        assert float(moments.examples) == 14
    merge.finish()
    return True


def test_the_owner_has_the_moments_of_all(quick):
    assert all(each["moments"] for each in quick)
