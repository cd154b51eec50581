"""How the cost of a step grows with width, batch, T, N_s and depth, beside what arithmetic says.

python -m benchmarks.scaling --out scaling.png

A network of equal dense layers (sigmoid, with biases) is trained by SGD with momentum and by PRONG
with preconditioned layers: with a whole P, and with leading directions. One quantity varies at a
time, the others stay at their defaults. The methods take turns as in benchmarks.step_time.

The floor counts multiply-adds of matrix products only, at SGD's own speed. With B rows, layers of
N × N and k directions, a step of SGD takes 3 B N² a layer (2 in the first), and PRONG adds

    whole P             min(B, N) N² for the gradient + S N²/2T for statistics + N³/T for P
    leading directions  2 B N k for the gradient + S N²/2T + 2 N² k/T for one subspace iteration

where S is N_s rounded up to whole batches, at most T B.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import prong
from benchmarks import step_time, workloads

WHOLE, LEADING = "prong, whole P, no limit", "prong, no limit"


@dataclass(frozen=True)
class Setting:
    """One network and one way to train it."""

    width: int = 512
    batch: int = 128
    period: int = 50
    samples: int = 2000
    depth: int = 4

    def floor(self, directions: Sequence[int | None]) -> float:
        """Return the ratio to SGD that arithmetic allows.

        Args:
            directions: k of each layer, or None where P is whole.
        """
        n, sgd, extra = self.width, 0.0, 0.0
        batches = min(self.period, math.ceil(self.samples / self.batch))
        for layer, k in enumerate(directions):
            sgd += (3 if layer else 2) * self.batch * n**2
            extra += batches * self.batch * n**2 / (2 * self.period)
            if k is None:
                extra += min(self.batch, n) * n**2 + n**3 / self.period
            else:
                extra += 2 * self.batch * n * k + 2 * n**2 * k / self.period
        return 1 + extra / sgd


SWEEPS: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 512, 1024, 2048),
    "batch": (32, 128, 512, 2048),
    "period": (10, 20, 50, 100, 200),
    "samples": (500, 1000, 2000, 5000),
    "depth": (2, 4, 8, 16),
}


@dataclass(frozen=True)
class Point:
    """Measured ratios to SGD (median, quartiles) and floors, of both methods."""

    value: int
    measured: dict[str, tuple[float, float, float]]
    floors: dict[str, float]
    directions: float


def measure(setting: Setting, value: int, rounds: int) -> Point:
    """Train all methods in turns."""
    torch.manual_seed(0)
    latent = torch.randn(4096, 20) @ torch.randn(20, setting.width) / 4
    examples = torch.sigmoid(latent + torch.randn(4096, setting.width) / 10)
    work = workloads.Workload(examples, None, setting.batch, examples[:1])
    options = argparse.Namespace(
        period=setting.period, samples=setting.samples, damping=0.1, decomposition_dtype="float32"
    )
    runs = {}
    for name in ("sgd", WHOLE, LEADING):
        torch.manual_seed(0)
        net = workloads.mlp([setting.width] * (setting.depth + 1), False)
        runs[name] = step_time.attach(step_time.METHODS[name], net, options)
    for turn in range(rounds + 1):
        for run in runs.values():
            run.turn(work, torch.Generator().manual_seed(turn), setting.period, counted=turn > 0)
    base = runs.pop("sgd").turns
    measured = {
        name: step_time.quartiles([own / sgd for own, sgd in zip(run.turns, base, strict=True)])
        for name, run in runs.items()
    }
    layers = [m for m in runs[LEADING].model.modules() if isinstance(m, prong.Whitened)]
    kept = [
        None
        if layer.precision_damping is None or layer.precision_matrix is None
        else layer.precision_matrix.shape[2]
        for layer in layers
    ]
    floors = {WHOLE: setting.floor([None] * setting.depth), LEADING: setting.floor(kept)}
    used = float(np.mean([setting.width if k is None else k for k in kept]))
    return Point(value, measured, floors, used)


def figure(points: dict[str, list[Point]]) -> Figure:
    """Return one panel for each quantity: measured with quartiles, floors dashed."""
    drawing = Figure(figsize=(3.2 * len(points), 3.4), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, len(points), squeeze=False, sharey=True)[0]
    for panel, (name, found) in zip(panels, points.items(), strict=True):
        values = [point.value for point in found]
        for colour, method in (("tab:blue", WHOLE), ("tab:orange", LEADING)):
            middle, low, high = np.array([point.measured[method] for point in found]).T
            label = "whole P" if method == WHOLE else "leading directions"
            panel.errorbar(
                values, middle, yerr=[middle - low, high - middle], color=colour, marker="o",
                label=label, capsize=3,
            )  # fmt: skip
            floors = [point.floors[method] for point in found]
            panel.plot(values, floors, color=colour, linestyle="--", label=f"{label}, floor")
        panel.set_xscale("log", base=2)
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_xlabel({"period": "T", "samples": "N_s"}.get(name, name))
    panels[0].set_ylabel("time of a step ÷ SGD's")
    panels[-1].legend(fontsize=8)
    return drawing


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each quantity, and plot them all."""
    parser = argparse.ArgumentParser(description="Cost of a step against the arithmetic floor.")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--width", type=int, default=512, help="where it does not vary")
    parser.add_argument("--most", type=int, default=None, help="leave out values above this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="the picture")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    given = sys.argv[1:] if arguments is None else arguments
    print(f"python -m benchmarks.scaling {' '.join(given)}")
    print(
        f"{platform.machine()}, {asked.threads} threads, torch {torch.__version__}; "
        f"elsewhere {Setting(width=asked.width)}"
    )
    points: dict[str, list[Point]] = {}
    for name in asked.sweeps:
        chosen = [v for v in SWEEPS[name] if asked.most is None or v <= asked.most]
        print(f"\n| {name} | whole P (quartiles) | floor | leading (quartiles) | floor | k |")
        print("|---|---|---|---|---|---|", flush=True)
        points[name] = []
        for value in chosen:
            setting = replace(Setting(width=asked.width), **{name: value})
            point = measure(setting, value, asked.rounds)
            points[name].append(point)
            cells = []
            for method in (WHOLE, LEADING):
                middle, low, high = point.measured[method]
                cells += [f"{middle:.2f} ({low:.2f}–{high:.2f})", f"{point.floors[method]:.2f}"]
            print(f"| {value} | {' | '.join(cells)} | {point.directions:.0f} |", flush=True)
    if asked.out is not None:
        partial = asked.out.with_name(f"{asked.out.stem}.partial{asked.out.suffix}")
        figure(points).savefig(partial, dpi=110)
        partial.replace(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
