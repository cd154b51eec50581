"""The process that runs the challenger: `… run_challenger FILE SHA256 CHAMPION`.

Nobody has let this model through. So it runs under limits (`pipelines.systems.confined`), after the
checks of the gates that only read it, and is talked to by pipes: a count and inputs come in,
answers of the very same size go out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipelines.systems.confined import OUT_OF_MEMORY, end_with_parent

if TYPE_CHECKING:
    from pipelines.systems.onnx.runtime import OnnxModel
    from pipelines.tasks.form import Form

READY, ANSWERS = b"R", b"A"
COUNT_BYTES = 4
"""Of the number of inputs, little endian, before the inputs."""
MOST = 4096
"""Inputs at a time."""
_NICENESS = 19


def main(file: Path, sha256: str, champion: Path) -> int:
    """Answer until the other side closes its pipe; return the exit code.

    Args:
        file: The challenger.
        sha256: What it must be.
        champion: The released file whose inputs and answers it must share.
    """
    end_with_parent()
    os.nice(_NICENESS)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # only what the server leaves over
    from pipelines.core.errors import UserError
    from pipelines.systems.onnx.runtime import OutOfMemory

    try:
        return _answer(loaded(file, sha256, champion), sys.stdin.buffer, sys.stdout.buffer)
    except (MemoryError, OutOfMemory):
        return OUT_OF_MEMORY
    except UserError as error:
        print(error, file=sys.stderr)
        return UserError.exit_code


def loaded(file: Path, sha256: str, champion: Path) -> OnnxModel:
    """Return the challenger, loaded after the checks that only read it.

    Raises:
        UserError: If it is another file, holds what no model needs, or does not take and give what
            the champion does.
    """
    from pipelines.core.errors import UserError
    from pipelines.systems.onnx.model_file import parse, read_checked
    from pipelines.systems.onnx.operators import not_allowed
    from pipelines.systems.onnx.runtime import OnnxModel

    content, card = read_checked(file)
    if wrong := not_allowed(parse(content)):
        raise UserError(f"not allowed: {'; '.join(wrong[:3])}")
    _, ours = read_checked(champion)
    if _taken(card.form) != _taken(ours.form) or card.output_shape != ours.output_shape:
        raise UserError("its inputs or answers are other ones than the champion's")
    model = OnnxModel.load(file, "cpu", threads=1)
    if model.sha256 != sha256:
        raise UserError("the file is not the one that was registered")
    return model


def _taken(form: Form) -> tuple[object, ...]:
    """Return what two forms must share for one to answer what the other was asked."""
    columns = tuple((column.name, column.kind, column.categories) for column in form.columns)
    values = tuple(value.name for value in form.values)
    return form.task, form.classes, values, form.input_shape, str(form.dtype), columns


def _answer(model: OnnxModel, source: BinaryIO, sink: BinaryIO) -> int:
    import numpy as np

    form = model.form
    each = int(np.prod(form.input_shape)) * form.dtype.itemsize
    sink.write(READY)
    sink.flush()
    while head := source.read(COUNT_BYTES):
        count = int.from_bytes(head, "little")
        if not 1 <= count <= MOST:
            return os.EX_DATAERR
        inputs = np.frombuffer(source.read(count * each), form.dtype)
        answers = model.answers(inputs.reshape(count, *form.input_shape))
        sink.write(ANSWERS + np.ascontiguousarray(answers).tobytes())
        sink.flush()
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)  # at once: what a model left running has nothing to say
