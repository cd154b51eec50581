"""The five stages that DVC runs: `python -m pipelines.pipeline.stages NAME` in a checkout's root.

Each stage reads `params.yaml` and calls one plain step function with typed values; the step knows
nothing of DVC, Prefect or this module. Step functions are imported when called, so that a stage
loads only what it needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines.core.config import Params
from pipelines.core.environment import AFRESH, RECORD, set_up
from pipelines.core.errors import Failed, Unavailable, UserError, disk_error
from pipelines.core.files import write_json
from pipelines.core.params_file import load
from pipelines.core.paths import Layout
from pipelines.core.text import print_anything, shown, shown_lines
from pipelines.systems.dvc.stage_code import note_code
from pipelines.systems.processes import end_with_keeper, exit_on_sigterm


def prepare(layout: Layout, params: Params) -> None:
    """Make `data/prepared`: the splits, the data card and its pictures."""
    from pipelines.data.prepare import prepare

    places = {"root": layout.root, "downloads": layout.downloads, "out": layout.prepared}
    card = prepare(params.data, task=params.task.name, **places)
    for warning in card.warnings:
        print(f"  data: {shown(warning)}")


def train(layout: Layout, params: Params) -> None:
    """Make `models/trained`, `reports/train.json`, `reports/history.csv` and `conditioning.csv`.

    What cannot be trained or released says so before.
    """
    from pipelines.training.launch import train
    from pipelines.training.warm_start import announced
    from pipelines.verification.dry_run import dry_run

    for line in dry_run(layout, params).lines():
        print(f"  train: {shown(line)}", flush=True)
    if start := announced(params.train, layout):
        print(f"  train: {shown(start.said)}", flush=True)
    train(layout, params, afresh=bool(os.environ.get(AFRESH)))


def evaluate(layout: Layout, params: Params) -> None:
    """Make `reports/evaluation.json`, `predictions.csv` and `hardest.json`."""
    from pipelines.evaluation.evaluate import evaluate

    evaluate(layout.trained, layout.prepared, params.evaluate, layout.reports)


def export(layout: Layout, params: Params) -> None:
    """Make `models/model.onnx`, `weights.safetensors`, `drift.onnx` and `triton`."""
    from pipelines.export.to_onnx import export

    places = {"out": layout.onnx, "weights": layout.weights}
    places |= {"drift": layout.drift, "triton": layout.triton}
    for warning in export(layout.trained, layout.prepared, params, layout.root, **places):
        print(f"  export: {shown(warning)}", flush=True)


def verify(layout: Layout, params: Params) -> None:
    """Make `reports/verification.json`, or fail."""
    from pipelines.verification.verify import verify

    out = layout.reports / "verification.json"
    verify(layout.trained, layout.prepared, layout.onnx, params.verify, out)


STAGES: dict[str, Callable[[Layout, Params], None]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "export": export,
    "verify": verify,
}


def check_names(names: Sequence[str]) -> frozenset[str]:
    """Return the stages that `--force` names.

    Raises:
        UserError: If one is not a stage.
    """
    for name in names:
        if name not in STAGES:
            raise UserError(f"--force {name!r}: not a stage; allowed: {', '.join(STAGES)}")
    return frozenset(names)


def run(name: str, layout: Layout) -> None:
    """Run one stage here.

    Raises:
        UserError: If the name is unknown, a parameter is wrong, or the stage says so.
    """
    if name not in STAGES:
        raise UserError(f"stage {name!r}: unknown; allowed: {', '.join(STAGES)}")
    try:
        set_up(layout)  # DVC may have been called by hand
        note_code(layout.root)
        STAGES[name](layout, load(layout.params))
    except OSError as error:
        mended = disk_error(error)
        if mended is None:
            raise
        raise mended from error


def main(arguments: list[str]) -> int:
    """Run the stage named on the command line; leave a record where one is asked for."""
    exit_on_sigterm()
    end_with_keeper()
    print_anything()
    # Before torch is loaded: spinning threads cost a busy machine several times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    record = os.environ.pop(RECORD, None)
    start = time.monotonic()
    message, code, silent = None, 0, False
    try:
        run(arguments[0] if arguments else "", Layout.find())
    except UserError as error:
        message, code, silent = str(error), error.exit_code, isinstance(error, Unavailable)
        if record is None:
            print(shown_lines(f"error: {message}"), file=sys.stderr)
    except Failed as error:
        print(shown_lines(f"error: {error}"), file=sys.stderr)
        code = error.exit_code
    finally:
        if record is not None:
            said: dict[str, object] = {
                "ran": True,
                "seconds": time.monotonic() - start,
                "error": message,
                "unavailable": silent,
            }
            _leave(Path(record), said)
    return code


def _leave(record: Path, said: dict[str, object]) -> None:
    try:
        write_json(record, said)
    except OSError as error:  # a full disk must not hide what the stage had to say
        print(f"{json.dumps(said)} ({error})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
