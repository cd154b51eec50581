"""What PRONG costs on a CUDA device, beside SGD, and what ONNX Runtime gains; tables to paste.

python -m benchmarks.gpu

Three settings: float32, mixed precision in bfloat16, and `torch.compile` in float32. In each, SGD
with momentum and every method train their own copy of the network on the same batches, a turn of T
steps at a time, so that a slow phase of the machine meets all of them; turns in which kernels are
chosen and graphs are compiled do not count. A step lies between two CUDA events, and nothing waits
for the device before the end of a turn. Ratios are to SGD in the same setting and turn; the tables
show their median and quartiles. With all settings, expect a quarter of an hour or more;
`--settings`, `--rounds` and `--seconds` shorten it.

Without a CUDA device it ends with code 2. `--device cpu` tries the tables out.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import step_time, workloads
from benchmarks.step_time import METHODS, Method, quartiles
from benchmarks.workloads import MODELS
from pipelines.export.to_onnx import folded, metadata, onnx_bytes
from pipelines.systems.onnx.runtime import VERSION as ORT_VERSION
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.classification import Classification
from pipelines.tasks.form import CLASSIFICATION, Form
from pipelines.training.network import NetworkSpec, build
from prong.extensions.side_stream import gather_on_side_stream

SETTINGS = ("float32", "bf16", "compiled")
ROWS = ("prong fold", "prong activations", "prong, whole P", "prong")
WARM = 2
"""Turns that do not count: the first has statistics in every step, the second not."""
LATENCIES = (1, 7, 256)
"""Images in a call of ONNX Runtime."""
FORM = Form(
    CLASSIFICATION,
    classes=tuple("0123456789"),
    size=32,
    channels=3,
    mean=(0.5,) * 3,
    deviation=(0.25,) * 3,
)
SPEC = NetworkSpec(FORM, (10,), method="prong", width=32, hidden=256)
HEAD = (
    "| setting | method | side stream | ms a step (quartiles) | ratio to SGD (quartiles) "
    "| of it in refreshes | ms a refresh | p99.9 ÷ median |\n|---|---|---|---|---|---|---|---|"
)
Batch = tuple[Tensor, Tensor | None]


class Clock:
    """Milliseconds between marks: of the device where it has events, else of the host."""

    def __init__(self, device: torch.device) -> None:
        """Time what is queued on the current stream of `device`."""
        self._cuda = device.type == "cuda"
        self._marks: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Set a mark behind all that was queued before; nothing waits for it."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._times.append(1e3 * time.perf_counter())

    def take(self) -> list[float]:
        """Wait for the last mark; return what lay between each two, and forget them."""
        if self._cuda and self._marks:
            self._marks[-1].synchronize()
            spans = [a.elapsed_time(b) for a, b in itertools.pairwise(self._marks)]
        else:
            spans = [b - a for a, b in itertools.pairwise(self._times)]
        self._marks, self._times = [], []
        return spans


@dataclass
class Row:
    """A method in a setting, at work, and the milliseconds that it took.

    Attributes:
        setting: One of `SETTINGS`.
        name: One of `step_time.METHODS`.
        side_stream: Whether statistics are taken beside the forward pass.
        run: Network, optimizers and Reparametrizer.
        call: What a batch is run through.
        steps: Milliseconds of each counted step.
        turns: Mean milliseconds of a step in each counted turn.
        shares: Of `turns`, what `Reparametrizer.step` took.
        refreshes: Milliseconds of each counted reparametrisation.
    """

    setting: str
    name: str
    side_stream: bool
    run: step_time.Run
    call: Callable[[Tensor], Tensor]
    steps: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    refreshes: list[float] = field(default_factory=list)

    def _precision(self, x: Tensor) -> AbstractContextManager[object]:
        if self.setting != "bf16":
            return nullcontext()
        return torch.autocast(x.device.type, torch.bfloat16)

    def turn(self, batches: Sequence[Batch], counted: bool) -> None:
        """Train one step on each batch."""
        clock, refreshed = Clock(batches[0][0].device), []
        for x, labels in batches:
            clock.mark()
            with self._precision(x):
                loss = workloads.loss(self.call(x), x, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in self.run.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            clock.mark()
            natural = self.run.natural
            refreshed.append(natural is not None and natural.step() is not None)
            clock.mark()
        # The third span of a step is the loop itself, on its way to the next one.
        spans = np.array([*clock.take(), 0.0]).reshape(len(batches), 3)
        if counted:
            self.steps += spans[:, :2].sum(1).tolist()
            self.turns.append(float(spans[:, :2].sum(1).mean()))
            self.shares.append(float(spans[:, 1].mean()))
            self.refreshes += spans[refreshed, 1].tolist()


def _row(setting: str, name: str, side_stream: bool, asked: argparse.Namespace) -> Row:
    method: Method = METHODS[name]
    if method.options is not None:
        options = {
            "step_limit": asked.step_limit or None,
            **method.options,
        }
        method = replace(method, options=options)
    run = step_time.begin(method, asked, {})
    if side_stream and run.natural is not None:
        gather_on_side_stream(run.natural)
    call: Callable[[Tensor], Tensor] = run.model
    if setting == "compiled":
        # A graph that cannot be had is an error and not a slower row.
        call = torch.compile(run.model, backend=asked.backend, fullgraph=True)
    return Row(setting, name, side_stream, run, call)


def rows(setting: str, asked: argparse.Namespace) -> list[Row]:
    """Build every row of a setting, SGD first."""
    found = [_row(setting, "sgd", False, asked)]
    for name in ROWS:
        # Compiled statistics stay on the stream of their graph.
        beside = (False,) if setting == "compiled" else (False, True)
        found += [_row(setting, name, side_stream, asked) for side_stream in beside]
    return found


def table(found: Sequence[Row]) -> str:
    """Return the lines of a setting in the Markdown table of step times; see `HEAD`."""
    lines, sgd = [], found[0].turns
    for row in found:
        time_, low, high = quartiles(row.turns)
        ratio, least, most = quartiles([a / b for a, b in zip(row.turns, sgd, strict=True)])
        share = np.median([a / b for a, b in zip(row.shares, sgd, strict=True)])
        tail = np.percentile(row.steps, 99.9) / np.median(row.steps)
        refresh = f"{np.median(row.refreshes):.2f}" if row.refreshes else "–"
        beside = "–" if row.run.natural is None else "on" if row.side_stream else "off"
        lines.append(
            f"| {row.setting} | {row.name} | {beside} | {time_:.3f} ({low:.3f}–{high:.3f}) "
            f"| {ratio:.2f} ({least:.2f}–{most:.2f}) | {share:.2f} | {refresh} | {tail:.1f} |"
        )
    return "\n".join(lines)


def latencies(device: str, calls: int) -> str:
    """Return the Markdown table of a released network's latency, on `device` beside the CPU."""
    torch.manual_seed(0)
    digest = "0" * 64
    task = Classification(FORM)
    card = metadata(SPEC, task, digest, digest, digest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(onnx_bytes(folded(build(SPEC)), task, card, 20))
        models = [
            OnnxModel.load(path, "cpu"),
            OnnxModel.load(path, "cuda" if device == "cuda" else "cpu", asked="--device"),
        ]
    shape = (LATENCIES[-1], *FORM.input_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    lines = [
        f"| images in a call | ms on the CPU | ms on {models[1].provider} | ratio (quartiles) |",
        "|---|---|---|---|",
    ]
    for batch in LATENCIES:
        seconds = np.empty((WARM + calls, 2))
        for turn, place in itertools.product(range(len(seconds)), range(2)):
            start = time.perf_counter()
            models[place].raw(images[:batch])  # returns once the answer is in the CPU's memory
            seconds[turn, place] = time.perf_counter() - start
        seconds = seconds[WARM:]
        ratio, low, high = quartiles((seconds[:, 1] / seconds[:, 0]).tolist())
        cpu, other = 1e3 * np.median(seconds, axis=0)
        lines.append(f"| {batch} | {cpu:.3f} | {other:.3f} | {ratio:.3f} ({low:.3f}–{high:.3f}) |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What PRONG costs on a CUDA device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--model", nargs="+", choices=MODELS, default=["autoencoder", "vgg"], dest="models"
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100, help="T, which is a turn's length too")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="begin no turn of a setting after the first that counts, once so much time is over; "
        "0 for no limit",
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--step-limit", type=float, default=0.003, help="ρ; 0 for none")
    parser.add_argument("--decomposition-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--tf32", action="store_true", help="round products to TF32")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--calls", type=int, default=200, help="of ONNX Runtime; 0 for none")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    asked = _parser().parse_args(arguments)
    cuda = asked.device == "cuda"
    if cuda and not torch.cuda.is_available():
        print(
            "--device = 'cuda': there is no CUDA device here; allowed: cpu, which tries the tables "
            "out and says nothing of a GPU",
            file=sys.stderr,
        )
        return 2
    torch.set_float32_matmul_precision("high" if asked.tf32 else "highest")
    given = sys.argv[1:] if arguments is None else arguments
    print(f"python -m benchmarks.gpu {shlex.join(given)}".rstrip())
    print(_place(asked))
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=asked.tf32),
        # Every row is a model of its own to the compiler, and the number of leading directions
        # changes; what does not fit in would be an error.
        torch._dynamo.config.patch(recompile_limit=256),
    ):
        for model in asked.models:
            print(f"\n### {model}\n\n{HEAD}", flush=True)
            # Setting by setting: what was measured is there when a later one takes too long.
            for setting in asked.settings:
                print(table(_trained(model, setting, asked)), flush=True)
    if asked.calls:
        print(f"\n### ONNX Runtime\n\n{latencies(asked.device, asked.calls)}")
    return 0


def _place(asked: argparse.Namespace) -> str:
    """Say what was measured, and on what."""
    device = f"{platform.machine()}, cpu"
    if asked.device == "cuda":
        device = (
            f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}"
        )
    return (
        f"{device}, torch {torch.__version__}, ONNX Runtime {ORT_VERSION}, "
        f"Python {platform.python_version()}; TF32 {'on' if asked.tf32 else 'off'}; "
        f"T = {asked.steps}, N_s = {asked.samples}, ε = {asked.damping}, "
        f"ρ = {asked.step_limit or 'none'}, batch {asked.batch}, random inputs"
    )


def _trained(model: str, setting: str, asked: argparse.Namespace) -> list[Row]:
    """Return the rows of a network in a setting after all their turns."""
    own = argparse.Namespace(**vars(asked), model=model, period=asked.steps)
    torch.manual_seed(0)
    work = workloads.random(model, asked.batch)
    work.examples = work.examples.to(asked.device)
    found, start = rows(setting, own), time.perf_counter()
    for turn in range(WARM + asked.rounds):
        if turn > WARM and 0 < asked.seconds <= time.perf_counter() - start:
            break
        # Drawn beforehand: a batch on its way to the device would be timed, too.
        generator = torch.Generator().manual_seed(turn)
        batches = [work.draw(generator) for _ in range(asked.steps)]
        for row in found:
            row.turn(batches, counted=turn >= WARM)
        place = f"{model}, {setting}: turn {turn + 1} of {WARM + asked.rounds}"
        print(place, file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
