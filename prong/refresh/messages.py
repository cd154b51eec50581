"""What a unit's owner tells the others: one flat message for each type of number.

Its length is the same on every rank and known before the owner has begun, so that everybody can
wait for it at once. Symmetric and triangular matrices travel as triangles, and the owner reads them
back as the others do: all hold the same bits.
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

# What a fresh root looks like: see `roots.whitening_root`.
FORMS = {"pca": "full", "zca": "symmetric", "cholesky": "lower", "newton-schulz": "symmetric"}


@dataclass(frozen=True)
class Part:
    """A piece of a message.

    Attributes:
        length: how many numbers.
        dtype: of which type.
        read: gives them, flat, on the owner.
        write: takes them over, flat; None if nothing is to be done with them.
        computed: whether the owner is to take them over as well, because reading may round.
    """

    length: int
    dtype: torch.dtype
    read: Callable[[], Tensor]
    write: Callable[[Tensor], None] | None
    computed: bool = False


class Message:
    """Parts on their way from one rank to all."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        """Lay out the parts, by type."""
        self.parts = list(parts)
        self._device = device
        self._dtypes = list(dict.fromkeys(part.dtype for part in self.parts))
        self._flat: dict[torch.dtype, Pending] = {}

    def start(self, ranks: Ranks, owner: int) -> None:
        """Send on the owner, wait for it elsewhere; returns at once."""
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
        """Wait, and take over what came; the owner, what it computed."""
        for dtype in self._dtypes:
            mine = [part for part in self.parts if part.dtype == dtype]
            flat = self._flat.pop(dtype).wait()
            for part, piece in zip(mine, torch.split(flat, [p.length for p in mine]), strict=True):
                if part.write is not None and (part.computed or not owner):
                    part.write(piece)


def numbers_part(told: Told) -> Part:
    """The numbers of a report, which say whether the rest is to be taken over."""
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
) -> list[Part]:
    """Φ, V and d, what the optimizers remember of them, and the per-batch diagonal's ε.

    Args:
        unit: the layers that share the Φ.
        whitening: what is done; it tells which matrices are triangles.
        optimizers: whose state follows the basis.
        told: says, at the time of writing, what is new.
        damping: room for ε of each group, or None.
        own: whether P of a preconditioned unit was found without a root; else it is a whole matrix.
        late: whether the numbers are known already: P has as many columns as they say.
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
                # Nothing new, as the numbers say, and directions of before: the length must fit.
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
    state = [] if whitening.momentum == "reset" else carried_tensors(optimizers, unit)
    plain = [*(p.data for p in unit.parameters), *state]
    if damping is not None:
        plain.append(damping)
    parts += [_plain([layer.mean for layer in unit.layers], told)]
    return parts + [_plain([tensor], told) for tensor in plain]


def _plain(tensors: Sequence[Tensor], told: Told) -> Part:
    """The first of some equal tensors."""
    first = tensors[0]

    def write(flat: Tensor) -> None:
        if told.result.updated:
            for tensor in tensors:
                tensor.copy_(flat.reshape(tensor.shape))

    return Part(first.numel(), first.dtype, lambda: first, write)


def _directions(unit: TiedLayers, columns: int) -> list[Part]:
    """P by its leading directions, or whole where the owner found that cheaper (−1)."""
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
    """A square matrix of the groups and features of `like`, as the numbers that its form has."""
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
