"""Before a training starts: does the network take the examples, and can it be released at all?

The untrained network answers a few examples, is folded, exported and asked again as an ONNX file.
What fails here would otherwise fail after the training. The networks of the zoo are known to be
exportable (the tests export each of them), so this trial export is for all others.
"""

from __future__ import annotations

import copy
import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import prong
from pipelines.core import own_code
from pipelines.core.config import Params
from pipelines.core.errors import UserError
from pipelines.core.paths import Layout
from pipelines.data.prepared import load_card
from pipelines.export.to_onnx import folded, metadata, onnx_bytes
from pipelines.systems.onnx.metadata import OnnxMetadata
from pipelines.systems.onnx.model_file import parse
from pipelines.systems.onnx.operators import not_allowed
from pipelines.systems.onnx.runtime import OnnxModel
from pipelines.tasks.examples import examples
from pipelines.tasks.form import CLASSIFICATION
from pipelines.tasks.named import task_of
from pipelines.training import augmentation
from pipelines.training.network import BODY, NetworkSpec, build, describe
from pipelines.training.zoo.by_name import KEY, ZOO
from pipelines.verification.task_trial import TaskTrial

_EXAMPLES = 3
_UNKNOWN = "0" * 64  # hashes that the file of an untrained network has no need of
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_PLACE = re.compile(r"[\w./-]+\.py:\d+ in \w+")


@dataclass(frozen=True)
class DryRun:
    """What is known of a network before its training.

    Attributes:
        network: `train.network`.
        parameters: Number of parameters that are trained.
        share: Of them, the share in layers that are whitened.
        plain: Reason → the layers that stay plain for it.
        exported: Whether a trial export was made.
    """

    network: str
    parameters: int
    share: float
    plain: dict[str, tuple[str, ...]]
    exported: bool

    def lines(self) -> Iterator[str]:
        """Yield what to tell before the training starts."""
        text = f"network {self.network}, {self.parameters:,} parameters"
        if self.share:
            text += f", {self.share:.1%} of them in whitened layers"
        yield text + (", trial export agrees" if self.exported else "")
        if self.share:
            for reason, names in self.plain.items():
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                yield f"stay plain: {shown}: {reason}"


def dry_run(layout: Layout, params: Params) -> DryRun:
    """Try the network that is to be trained, untrained, on the CPU, and own augmentation.

    Args:
        layout: The checkout, whose data are prepared.
        params: Its parameters.

    Raises:
        UserError: If the network cannot be made, takes or returns other shapes, answers one example
            in different ways, has nothing to whiten, or cannot be exported as it must be; or if
            `train.augment_by` cannot be relied on.
    """
    augmentation.try_out(params.train, layout.prepared)
    spec = describe(params.train, load_card(layout.prepared), layout.root)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.train.seed)
        return try_out(build(spec, layout.root), spec, params.export.opset, layout.root)


def try_out(network: nn.Module, spec: NetworkSpec, opset: int, root: Path) -> DryRun:
    """Try an untrained network; see `dry_run`.

    Args:
        network: As `build` returned it; training mode and statistics are not kept.
        spec: Its specification.
        opset: Version of the ONNX operators.
        root: The checkout, for messages about the user's own code.
    """
    trial = _Trial(network, spec, opset, root)
    trial.answers()
    trial.learns()
    # The networks of the zoo are exported by the tests, of 8-bit images with a built-in task.
    known = spec.form.kind == "images" and spec.form.bits == 8 and not spec.task_code
    exported = spec.network not in ZOO or not known
    if exported:
        trial.moves()
        trial.exports()
    return _summary(network, spec, exported)


class _Trial:
    """One network on trial; each method raises a `UserError` where it fails."""

    def __init__(self, network: nn.Module, spec: NetworkSpec, opset: int, root: Path) -> None:
        self._network, self._spec, self._opset, self._root = network, spec, opset, root
        self._task = task_of(spec.form, root)
        self._given = examples(spec.form, _EXAMPLES)
        self._inputs = torch.from_numpy(self._given)
        self._asked = TaskTrial(self._task, self._given, root)

    def _refused(self, why: str) -> UserError:
        return UserError(f"{KEY} = {self._spec.network!r}: {why}")

    def _ask(self, inputs: Tensor, doing: str) -> Tensor:
        """Return the network's raw output, after its type and shape were checked."""
        shape, what = list(inputs.shape), self._spec.form.kind
        wanted = [len(inputs), *self._spec.output_shape]
        try:
            raw: Any = self._network(inputs)
        except Exception as error:
            said = own_code.where(error, self._root)
            if what == "rows":
                shape = [len(inputs), *self._spec.signature().input_shape]
            raise self._refused(f"cannot {doing} {what} {shape}: {said}") from None
        if not isinstance(raw, Tensor):
            raise self._refused(f"returned {type(raw).__name__}; a tensor {wanted} is needed")
        if list(raw.shape) != wanted or raw.dtype != torch.float32:
            kind = str(raw.dtype).removeprefix("torch.")
            means = ", one logit for each class" if self._spec.form.task == CLASSIFICATION else ""
            raise self._refused(
                f"returned {kind} {list(raw.shape)} for {len(inputs)} {what}; needed: float32 "
                f"{wanted}{means}"
            )
        return raw

    def answers(self) -> None:
        """Check the answers in evaluation mode: shape, finite, and always the same."""
        self._network.eval()
        with torch.no_grad():
            together = self._ask(self._inputs, "answer")
            again = self._ask(self._inputs, "answer")
            alone = torch.cat([self._ask(one[None], "answer") for one in self._inputs])
        if not together.isfinite().all():
            raise self._refused("the untrained network's answer is not finite")
        if not torch.equal(together, again):
            raise self._refused(
                f"answered the same {self._spec.form.kind} differently in evaluation mode; what is "
                "random must ask self.training, as nn.Dropout does"
            )
        if _apart(together, alone) > 1e-3:
            raise self._refused(
                "the answer to one example depends on the others of its batch in evaluation "
                "mode; nothing may be computed over the first dimension"
            )

    def learns(self) -> None:
        """Check one step backwards in training mode."""
        self._network.train()
        raw = self._ask(self._inputs, "be trained on")
        loss = self._asked.loss(raw)
        try:
            loss.sum().backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise self._refused(
                f"no gradient can be computed: {own_code.where(error, self._root)}"
            ) from None
        trained = [(n, p) for n, p in self._network.named_parameters() if p.requires_grad]
        idle = [name.removeprefix(BODY) for name, p in trained if p.grad is None]
        self._network.zero_grad()
        self._network.eval()
        if idle:
            raise self._refused(
                f"no gradient reaches {', '.join(idle[:3])}{', …' if len(idle) > 3 else ''}; use "
                "them, remove them, or set requires_grad = False"
            )

    def moves(self) -> None:
        """Check that the function stays when the whitening moves: no weight is used elsewhere."""
        if not self._spec.whitened:
            return
        found = prong.check(self._network, self._inputs)
        if found.layers:
            raise self._refused(
                f"cannot be whitened: {str(found).replace(BODY, '')}; train.method without prong, "
                "or use the weights in their layers only"
            )

    def exports(self) -> None:
        """Check that the folded network as an ONNX file is allowed and answers the same."""
        card = metadata(self._spec, self._task, _UNKNOWN, _UNKNOWN, _UNKNOWN)
        plain = folded(self._network)
        try:
            with _silent():
                content = onnx_bytes(plain, self._task, card, self._opset)
        except UserError:
            raise
        except Exception as error:  # the exporter raises almost anything
            why = _why_not_exported(error, self._root)
            refused = self._to_blame(plain, card)
            raise refused(f"cannot be exported to ONNX: {why}") from None
        if bad := not_allowed(parse(content)):
            refused = self._to_blame(plain, card)
            raise refused(
                f"its ONNX file would hold what no release may: {'; '.join(bad[:5])} "
                "(docs/gates.md lists the operators)"
            )
        with tempfile.TemporaryDirectory(prefix="prong-trial-") as folder:
            path = Path(folder) / "untrained.onnx"
            path.write_bytes(content)
            try:
                model = OnnxModel.load(path, "cpu")
                pairs = [model.both(self._given, batch=batch) for batch in (1, 2, _EXAMPLES)]
            except UserError as error:
                said = str(error).removeprefix(f"{path}: ")
                raise self._refused(
                    f"its ONNX file does not run: {said}; any number of examples must be allowed: "
                    "x.shape[0], not len(x) or a fixed number"
                ) from None
        with torch.no_grad():
            expected = plain(self._inputs)
        apart = max(_apart(expected, torch.from_numpy(each)) for each, _ in pairs)
        if not apart <= 1e-3:
            raise self._refused(
                f"its ONNX file answers otherwise than torch: {apart:.1e} off, relative to the "
                "largest output; a shape or a value was probably fixed in the export"
            )
        for raw, answers in pairs:
            self._asked.exported(raw, answers)

    def _to_blame(self, plain: nn.Module, card: OnnxMetadata) -> Callable[[str], UserError]:
        """Return whose fault an export is: the network's, unless it is released without answers."""
        if self._spec.task_code:
            unread = copy.copy(self._task)
            # Two outputs of a graph must not be one value.
            unread.answer = lambda raw: raw + 1.0  # type: ignore[method-assign]
            with suppress(Exception), _silent():
                alone = onnx_bytes(plain, unread, card, self._opset)
                if not not_allowed(parse(alone)):
                    return lambda why: self._asked.refused(f"answer: {why}")
        return self._refused


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the exporter, which prints whole graphs where it fails; its exception says enough."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    scale = max(float(one.abs().max()), float(np.finfo(np.float32).tiny))
    return float((one - other).abs().max()) / scale


def _why_not_exported(error: BaseException, root: Path) -> str:
    """Return in one line what the exporter stumbled over: an operator, or a line of the code."""
    places, texts = [], []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        places.append(own_code.frame(cause, root))
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(texts)
    operators = dict.fromkeys(_OPERATOR.findall(text))
    if operators:
        return f"no ONNX operator for {', '.join(operators)}"
    place = next(filter(None, reversed(places)), "")
    if not place:
        own = [found for found in _PLACE.findall(text) if "site-packages" not in found]
        place = next((found for found in own if Path(root, Path(found).name).exists()), "")
    lines = [" ".join(line.split()) for line in texts[-1].splitlines()]
    said = next((line for line in lines if line and not line.startswith("#")), type(error).__name__)
    return f"{place}: {said[:300]}" if place else said[:300]


def _summary(network: nn.Module, spec: NetworkSpec, exported: bool) -> DryRun:
    plain: dict[str, list[str]] = {}
    modules = dict(network.named_modules())
    white: set[int] = set()
    for status in prong.coverage(network):
        if status.whitened:
            white |= {id(p) for p in modules[status.name].parameters(recurse=False)}
        else:
            plain.setdefault(status.reason, []).append(status.name.removeprefix(BODY))
    counts = {id(p): p.numel() for p in network.parameters() if p.requires_grad}
    total = sum(counts.values())
    return DryRun(
        network=spec.network,
        parameters=total,
        share=sum(n for key, n in counts.items() if key in white) / total if white else 0.0,
        plain={reason: tuple(names) for reason, names in plain.items()},
        exported=exported,
    )
