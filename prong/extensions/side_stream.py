"""Statistics on a CUDA stream of their own, beside the forward and the backward pass.

What a layer gathers is needed only at the next reparametrisation; on the current stream it would
still stand between one layer and the next. Here it is queued on a second stream of the device, in
three rules:

- The side stream first waits for the current one, which makes the samples.
- It reads memory to which nothing else writes: a copy, where the samples are a view of the layer's
  input, which a model or a training loop may overwrite in place. `Tensor.record_stream` keeps that
  memory, and the moments', until the side stream is through with them.
- Before the moments are read, the reader's stream waits for the side stream, which is
  `Moments.settle`. Nothing waits on the host.

The products are the same, in the same order, so the moments are the same numbers. On other devices,
under `torch.compile` and while a CUDA graph is being captured, the current stream is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from prong.statistics.moments import GatheringStream, Moments


class GathersOn(Protocol):
    """What statistics can be moved of: a `prong.Reparametrizer`."""

    def gather_on(self, stream: GatheringStream | None) -> None:
        """Gather there from now on."""


class SideStream:
    """One further stream for each CUDA device on which statistics are gathered."""

    def __init__(self) -> None:
        """Make no stream yet: a model may be on the CPU, or still be moved."""
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __reduce__(self) -> tuple[type[SideStream], tuple[()]]:
        """Copied or stored, it has no streams: they belong to this process and to this object."""
        return SideStream, ()

    @torch.no_grad()
    def add(self, moments: Moments, samples: Tensor, examples: int, source: Tensor) -> None:
        """Add a batch to moments, beside the current stream where that is possible.

        Args:
            moments: on the device of the samples.
            samples: `[groups, samples, in]`, as for `Moments.add`.
            examples: how many examples the batch holds.
            source: what the samples were taken from; it may be overwritten as soon as this returns.
        """
        if not _has_streams(samples):
            moments.add(samples, examples)
            return
        # Before the side stream starts, so that the current stream itself orders the copy and
        # whatever overwrites the source.
        own = samples.clone() if _share_memory(samples, source) else samples
        stream = self._streams.get(own.device)
        if stream is None:
            stream = self._streams[own.device] = torch.cuda.Stream(own.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(own.device))
        moments.beside = self
        with torch.cuda.stream(stream):
            moments.add(own, examples)
        for tensor in (own, *(getattr(moments, name) for name in moments.TENSORS)):
            tensor.record_stream(stream)

    def join(self, device: torch.device | None = None) -> None:
        """Let the current stream of a device, or of all of them, wait for what was queued there.

        Args:
            device: the device of the tensors that will be read; None for all devices.
        """
        for own, stream in self._streams.items():
            if device is not None and own != device:
                continue
            current = torch.cuda.current_stream(own)
            # A capture may not wait for work outside of it; it begins with all streams at rest.
            if current != stream and not _captures(own):
                current.wait_stream(stream)


def gather_on_side_stream(natural: GathersOn) -> None:
    """Let a `prong.Reparametrizer` take its statistics on a CUDA stream of their own.

    They are the same numbers. Without effect on other devices, under `torch.compile`, and in a
    captured CUDA graph. What it gains has not been measured.
    """
    natural.gather_on(SideStream())


def _has_streams(samples: Tensor) -> bool:
    """Whether work on `samples` may be queued beside the current stream."""
    return (
        not torch.compiler.is_compiling()
        and samples.device.type == "cuda"
        and not _captures(samples.device)
    )


def _captures(device: torch.device) -> bool:
    """Whether the current stream of a CUDA device records a graph instead of working."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
