"""Messages from a unit's owner to the other ranks: one flat tensor for each type of number.

Every rank knows the length before the owner starts its work, so all can start to receive at once.
Symmetric and triangular matrices are sent as triangles. The owner unpacks them as the others do, so
all ranks hold the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prong.linalg.preconditioner import Dense, LowRank
from prong.linalg.triangle import pack_upper, triangle_size, unpack_upper
from prong.refresh.optimizer_state import carried_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from prong.distributed.ranks import Pending, Ranks
    from prong.options import SolveSettings
    from prong.refresh.result import Told
    from prong.refresh.tied_layers import TiedLayers

# The form of a new root; see `roots.whitening_root`.
FORMS = {"pca": "full", "zca": "symmetric", "cholesky": "lower", "newton-schulz": "symmetric"}


@dataclass(frozen=True)
class Part:
    """A part of a message.

    Attributes:
        length: number of numbers.
        dtype: type of the numbers.
        read: returns the owner's numbers.
        write: installs the received numbers, given as a flat tensor; None to ignore them.
        computed: whether the owner also calls `write`, because the sent numbers may differ from its
            own.
    """

    length: int
    dtype: torch.dtype
    read: Callable[[], Tensor]
    write: Callable[[Tensor], None] | None
    computed: bool = False


class Message:
    """A broadcast of parts from one rank to all."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        """Group the parts by type."""
        self.parts = list(parts)
        self._device = device
        self._dtypes = list(dict.fromkeys(part.dtype for part in self.parts))
        self._flat: dict[torch.dtype, Pending] = {}

    def start(self, ranks: Ranks, owner: int) -> None:
        """Start to send on the owner, and to receive on the others, without waiting."""
        for dtype in self._dtypes:
            mine = [part for part in self.parts if part.dtype == dtype]
            if ranks.index == owner:
                flat = torch.cat([part.read().reshape(-1) for part in mine])
            else:
                flat = torch.empty(
                    sum(part.length for part in mine), dtype=dtype, device=self._device
                )
            self._flat[dtype] = ranks.broadcast(flat, owner)

    def finish(self, *, owner: bool) -> None:
        """Wait, and install what was received; on the owner, only the parts with `computed`."""
        for dtype in self._dtypes:
            mine = [part for part in self.parts if part.dtype == dtype]
            flat = self._flat.pop(dtype).wait()
            for part, piece in zip(mine, torch.split(flat, [p.length for p in mine]), strict=True):
                if part.write is not None and (part.computed or not owner):
                    part.write(piece)


def numbers_part(told: Told) -> Part:
    """The numbers of a result, which show whether the other parts are installed."""
    return Part(len(told.numbers), told.numbers.dtype, lambda: told.numbers, told.take)


def unit_parts(
    unit: TiedLayers,
    whitening: SolveSettings,
    optimizers: Sequence[Optimizer],
    told: Told,
    damping: Tensor | None,
    *,
    own: bool,
    late: bool,
    state: bool = True,
) -> list[Part]:
    """Return the parts for Φ, V and d, their optimizer state, and ε for the per-batch diagonal.

    Args:
        unit: the layers that share the Φ.
        whitening: the settings, which determine the matrices that are sent as triangles.
        optimizers: the optimizers whose state is transformed into the new basis.
        told: the result; when a part is written, it shows what is new.
        damping: tensor for ε of each group, or None.
        own: whether P of a preconditioned unit was computed without a root; if not, P is whole.
        late: whether the result is already known, and with it the number of columns of P.
        state: whether the owner also sends the optimizers' state.
    """
    layer = unit.layer
    whole = not (late and own)
    parts: list[Part] = []
    if not layer.preconditioned:
        form = FORMS[whitening.root] if whitening.kind == "full" else "diagonal"

        def put_whitener(matrix: Tensor) -> None:
            if told.result.updated:
                for each in unit.layers:
                    each.whitener.copy_(matrix)

        parts.append(_matrix(lambda: layer.whitener, layer.whitener, form, put_whitener))
    elif whole:

        def put_whole(matrix: Tensor) -> None:
            if told.result.updated:
                for each in unit.layers:
                    each.put_preconditioner(Dense(matrix))

        groups, features = layer.mean.shape

        def held() -> Tensor:
            found = layer.preconditioner
            if not isinstance(found, Dense):
                # The unit was not updated and still has leading directions. The receivers ignore
                # this part, but its length must be that of a whole P.
                return layer.mean.new_zeros(groups, features, features)
            return found.matrix

        parts.append(_matrix(held, layer.mean, "symmetric", put_whole))
    else:
        parts += _directions(unit, told.result.columns)
    if layer.output_whitener is not None:

        def put_output(matrix: Tensor) -> None:
            if told.result.updated and told.result.output_fresh:
                for each in unit.layers:
                    assert each.output_whitener is not None
                    each.output_whitener.copy_(matrix)

        output = layer.output_whitener
        parts.append(_matrix(lambda: output, output, FORMS[whitening.root], put_output))
    sent = state and whitening.momentum != "reset"
    carried = carried_tensors(optimizers, unit) if sent else []
    plain = [*(p.data for p in unit.parameters), *carried]
    if damping is not None:
        plain.append(damping)
    parts += [_plain([layer.mean for layer in unit.layers], told)]
    return parts + [_plain([tensor], told) for tensor in plain]


def _plain(tensors: Sequence[Tensor], told: Told) -> Part:
    """Return the part for the first of several equal tensors; `write` fills all of them."""
    first = tensors[0]

    def write(flat: Tensor) -> None:
        if told.result.updated:
            for tensor in tensors:
                tensor.copy_(flat.reshape(tensor.shape))

    return Part(first.numel(), first.dtype, lambda: first, write)


def _directions(unit: TiedLayers, columns: int) -> list[Part]:
    """Return the part for P by `columns` leading directions, or for a whole P if it is −1."""
    layer = unit.layer
    groups, features = layer.mean.shape
    dtype = layer.mean.dtype

    def matrix() -> Tensor:
        assert layer.precision_matrix is not None
        return layer.precision_matrix

    if columns < 0:

        def put(whole: Tensor) -> None:
            for each in unit.layers:
                each.put_preconditioner(Dense(whole))

        return [_matrix(matrix, layer.mean, "symmetric", put)]

    def epsilon() -> Tensor:
        assert layer.precision_damping is not None
        return layer.precision_damping

    def put_both(flat: Tensor) -> None:
        found, damping = torch.split(flat, [groups * features * columns, groups])
        for each in unit.layers:
            each.put_preconditioner(LowRank(found.reshape(groups, features, columns), damping))

    length = groups * features * columns + groups
    return [Part(length, dtype, lambda: torch.cat([matrix().reshape(-1), epsilon()]), put_both)]


def _matrix(
    read: Callable[[], Tensor], like: Tensor, form: str, put: Callable[[Tensor], None]
) -> Part:
    """Return the part for square matrices of the size of `like`, packed according to `form`."""
    groups, size = like.shape[:2]
    if form == "full":
        return Part(
            groups * size * size,
            like.dtype,
            read,
            lambda flat: put(flat.reshape(groups, size, size)),
        )
    if form == "diagonal":
        return Part(
            groups * size,
            like.dtype,
            lambda: read().diagonal(dim1=1, dim2=2),
            lambda flat: put(torch.diag_embed(flat.reshape(groups, size))),
            computed=True,
        )
    symmetric = form == "symmetric"
    return Part(
        groups * triangle_size(size),
        like.dtype,
        lambda: pack_upper(read() if symmetric else read().transpose(1, 2)),
        lambda flat: put(_unpacked(flat.reshape(groups, -1), size, symmetric)),
        computed=True,
    )


def _unpacked(packed: Tensor, size: int, symmetric: bool) -> Tensor:
    matrix = unpack_upper(packed, size, symmetric=symmetric)
    return matrix if symmetric else matrix.transpose(1, 2)
