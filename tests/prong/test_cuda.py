"""On a CUDA device: the same promises, with TF32, half precision, a compiler and a device move.

What needs no CUDA kernel of its own runs on the CPU as well, so that these tests are known to work.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from devices import BOTH, CUDA
from exact import EXACT, reparametrizer
from processes import run
from safetensors.torch import load_file, save_file
from small_runs import assert_same_bits, folded, train_step
from test_path import PERIOD, SAMPLES, arrays, batches, reference, relative
from test_path import network as dense_network
from torch import nn

import prong

MODES = ["fold", "activations", "preconditioned"]


def network(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), activation(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def batch(step, device, size=64):
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 10, (size,), generator=generator)
    x = nn.functional.one_hot(labels, 108).float().reshape(size, 3, 6, 6)
    x = x + torch.randn(size, 3, 6, 6, generator=generator) / 10
    return x.to(device), labels.to(device)


def start(device, activation=nn.ReLU, **options):
    model = prong.whiten(network(activation).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {**EXACT, "period": 5, "samples": 128, **options}
    return model, optimizer, reparametrizer(model, optimizer, **options)


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize("tf32", [False, True])
def test_reparametrisation_keeps_the_function(device, tf32):
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        model = prong.whiten(network()).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
        natural = reparametrizer(model, optimizer, period=5, samples=128, **EXACT)
        x = torch.randn(64, 3, 6, 6, device=device) + 1
        before = model(x).detach()
        natural.initialize([x], "preserve")
        assert (model(x) - before).abs().max() < 1e-2 * before.abs().max()
        folded = prong.fold(model)
        assert (folded(x) - model(x)).abs().max() < 1e-2 * before.abs().max()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_mixed_precision_follows_float32(device, half, mode):
    """float16 with gradient scaling, bfloat16 without; statistics and folds stay float32."""
    paths, runs = [], []
    for mixed in (False, True):
        # Twenty steps are few: with this ρ they lead far enough to tell two paths apart.
        model, optimizer, natural = start(device, mode=mode, step_limit=0.03)
        natural.initialize([batch(99, device)[0]])
        begun = folded(model)
        # Low enough that no step is left out: the path beside it leaves out none.
        scaled = mixed and half is torch.float16
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=scaled)
        losses = []
        for step in range(20):
            x, y = batch(step, device)
            with torch.autocast(device, half, enabled=mixed):
                output = model(x)
                loss = nn.functional.cross_entropy(output.float(), y)
            assert output.dtype == (half if mixed else torch.float32)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            natural.step()
            losses.append(float(loss.detach()))
        assert natural.report.layers["3"].updated
        assert {buffer.dtype for buffer in model[3].phi_buffers()} == {torch.float32}
        paths.append(folded(model))
        runs.append(losses)
    # Eight bits of a product, and as many of a gradient.
    assert (paths[1] - paths[0]).norm() < 0.015 * paths[0].norm()
    assert (paths[1] - paths[0]).norm() < 0.1 * (paths[0] - begun).norm()
    assert max(abs(a - b) for a, b in zip(*runs, strict=True)) < 0.01


@pytest.mark.parametrize("device", [CUDA])
def test_moving_to_the_device_in_mid_window(device):
    model = prong.whiten(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    natural = reparametrizer(model, optimizer, period=2, samples=16, batch_diagonal=True, **EXACT)
    model(torch.randn(8, 3, 6, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    natural.step()
    model.to(device)
    model(torch.randn(8, 3, 6, 6, device=device)).sum().backward()
    optimizer.step()
    report = natural.step()
    assert report.layers["0"].examples == 16


@pytest.mark.parametrize("device", BOTH)
def test_the_preconditioned_path_is_the_closed_form(device):
    """Twenty steps, two reparametrisations, float64: the path of the reference in numpy."""
    model = prong.whiten(dense_network().to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options = {"damping": 0.05, "root": "cholesky", "step_limit": None, "mode": "preconditioned"}
    natural = reparametrizer(
        model, optimizer, period=PERIOD, samples=SAMPLES, **{**EXACT, **options}
    )
    path = reference("gradient")[:20]
    found = []
    for x, labels in batches(20):
        inputs, wanted = torch.tensor(x).to(device), torch.tensor(labels).to(device)
        train_step(model, optimizer, natural, inputs, wanted)
        plain, biases = arrays(prong.fold(model).cpu())
        found.append(np.concatenate([p.ravel() for p in [*plain, *biases]]))
    assert natural.report.layers["0"].updated
    assert relative(np.array(found), path) <= 1e-10


@pytest.mark.parametrize(
    ("device", "mode"),
    [
        pytest.param("cpu", "fold", marks=pytest.mark.slow),  # test_running.py compiles it as well
        ("cpu", "preconditioned"),
        pytest.param("cuda", "fold", marks=CUDA.marks),
        pytest.param("cuda", "preconditioned", marks=CUDA.marks),
    ],
)
# The compiler and what it calls warn of what concerns only themselves, or a faster product.
@pytest.mark.filterwarnings("default")
def test_compiled_there_are_two_graphs_and_the_same_path(device, mode):
    from torch._dynamo.testing import CompileCounterWithBackend

    paths, states = [], []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for compiled, side_stream in ((False, False), (True, False), (True, True)):
            torch._dynamo.reset()
            counter = CompileCounterWithBackend("inductor" if device == "cuda" else "aot_eager")
            # Smooth: one input of a ReLU is so near 0 that rounding moves weights by 3e-4.
            model, optimizer, natural = start(device, nn.Tanh, mode=mode, side_stream=side_stream)
            natural.initialize([batch(99, device)[0]])
            called = torch.compile(model, backend=counter, fullgraph=True) if compiled else model
            for index in range(17):
                train_step(called, optimizer, natural, *batch(index, device))
            # One graph that takes statistics and one that does not; three reparametrisations add
            # none, and a side stream makes no difference to a graph.
            assert counter.frame_count == 2 * compiled
            assert natural.report.layers["0"].samples > 0
            assert (natural._stream is not None) == side_stream
            paths.append((folded(model), natural.report.layers["0"].samples))
            states.append(model.state_dict())
    assert len({samples for _, samples in paths}) == 1
    for path, _ in paths[1:]:
        assert (path - paths[0][0]).abs().max() < 1e-5
    if device == "cpu":  # on a CUDA device sums of gradients may have any order
        assert not natural._stream._streams
        assert_same_bits(states[2], states[1])


def _resumed(rank, size, device, folder, options):
    """Whether a run that stops in mid-window and goes on in other objects ends in the same bits."""
    torch.use_deterministic_algorithms(True)

    def train(model, optimizer, natural, first, last):
        for index in range(first, last):
            train_step(model, optimizer, natural, *batch(index, device))

    whole = start(device, **options)
    whole[2].initialize([batch(99, device)[0]])
    train(*whole, 0, 17)
    model, optimizer, natural = start(device, **options)
    natural.initialize([batch(99, device)[0]])
    train(model, optimizer, natural, 0, 9)
    state = natural.state_dict()
    assert any(name.endswith("scatter") for name in state["tensors"])
    save_file(state["tensors"], f"{folder}/natural.safetensors")
    meta = json.dumps(state["meta"])
    torch.save([model.state_dict(), optimizer.state_dict()], f"{folder}/rest.pt")
    model, optimizer, natural = start(device, **options)
    rest = torch.load(f"{folder}/rest.pt", map_location=device)
    model.load_state_dict(rest[0])
    optimizer.load_state_dict(rest[1])
    natural.load_state_dict(
        {"tensors": load_file(f"{folder}/natural.safetensors"), "meta": json.loads(meta)}
    )
    train(model, optimizer, natural, 9, 17)
    found, expected = model.state_dict(), whole[0].state_dict()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize(
    "options",
    [
        {"two_sided": prong.TwoSided()},
        {"mode": "preconditioned", "leading": 0.5, "spread": True},
        {"mode": "activations", "side_stream": True},
    ],
    ids=["two sides", "preconditioned", "side stream"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(
    device, options, tmp_path, monkeypatch
):
    # cuBLAS reads it once in a process, hence a process of its own.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    (differing,) = run(tmp_path / "ranks", 1, _resumed, device, str(tmp_path), options)
    assert differing == []


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("side_stream", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_between_reparametrisations_waits_for_the_device(device, side_stream, mode):
    model, optimizer, natural = start(device, mode=mode, step_limit=None, side_stream=side_stream)
    drawn = [batch(index, device) for index in range(15)]
    for x, y in drawn[:5]:  # the first period also tells how large a batch is
        train_step(model, optimizer, natural, x, y)
    gathered = 0
    for number, (x, y) in enumerate(drawn[5:], 6):
        if number % natural.period == 0:
            assert train_step(model, optimizer, natural, x, y) is not None
            continue
        gathered += model[0].moments is not None
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert train_step(model, optimizer, natural, x, y) is None
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert 0 < gathered < 8  # steps of both kinds were watched


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_wait_for_the_device_would_be_noticed(device):
    value = torch.ones((), device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            float(value)
    finally:
        torch.cuda.set_sync_debug_mode("default")
