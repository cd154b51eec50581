"""Tune knobs of `train`: every combination, several seeds, judged on the validation split.

python -m benchmarks.tune --set train.lr=0.03,0.05 --set train.damping=0.03,0.1 --epochs 2
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.trial import options, trial
from pipelines.core import params_file
from pipelines.core.config import TrainConfig
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout

DEFAULT = ("train.lr=0.025,0.05,0.1", "train.damping=0.03,0.1,0.3")


def grid(assignments: Sequence[str], params: Path) -> Iterator[tuple[tuple[str, ...], TrainConfig]]:
    """Yield the settings of every combination, each checked as `params.yaml` is.

    Args:
        assignments: Such as `train.lr=0.03,0.05`.
        params: The file whose other knobs count.

    Raises:
        UserError: If a knob is none of `train`, or a value is not allowed.
    """
    options = []
    for text in assignments:
        key, _, values = text.partition("=")
        if not key.startswith("train.") or not values:
            raise UserError(f"--set {text!r}: allowed: train.KNOB=VALUE,VALUE,…")
        options.append([f"{key}={value}" for value in values.split(",")])
    for chosen in itertools.product(*options):
        with tempfile.TemporaryDirectory() as scratch:
            copy = shutil.copy(params, scratch)
            params_file.edit(Path(copy), list(chosen))
            yield chosen, params_file.load(Path(copy)).train


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of all combinations, best first."""
    parser = options("Tune knobs of `train`, judged on the validation split.")
    parser.add_argument("--set", action="append", dest="knobs", metavar="train.KNOB=V,V")
    asked = parser.parse_args(arguments)
    layout = Layout.find()
    rows = []
    for names, train in grid(asked.knobs or DEFAULT, layout.params):
        train = replace(train, epochs=asked.epochs or train.epochs)
        done = [trial(replace(train, seed=seed), layout.prepared) for seed in range(asked.seeds)]
        error = statistics.mean(one.error for one in done)
        spread = max(one.error for one in done) - min(one.error for one in done)
        seconds = statistics.mean(one.seconds for one in done)
        loss = statistics.mean(one.loss for one in done)
        rows.append((error, loss, spread, seconds, "  ".join(n[len("train.") :] for n in names)))
        print(f"{rows[-1][-1]}: {100 * error:.2f} %", file=sys.stderr)
    print(f"{'error %':>8} {'spread':>7} {'loss':>7} {'seconds':>8}  settings")
    for error, loss, spread, seconds, said in sorted(rows):
        print(f"{100 * error:8.2f} {100 * spread:7.2f} {loss:7.4f} {seconds:8.1f}  {said}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
