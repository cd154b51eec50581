"""Statistics on a separate CUDA stream, parallel to the forward and the backward pass.

A layer's statistics are needed only at the next reparametrisation. On the current stream the next
layer would still have to wait for them. Here they are queued on a second stream of the device, by
three rules:

- The side stream first waits for the current stream, which computes the samples.
- It reads only memory that no other code overwrites. Where the samples are a view of the layer's
  input, it reads a copy, because a model or a training loop may change the input in place.
  `Tensor.record_stream` keeps this memory, and the moments' memory, until the side stream has
  finished with it.
- Before the moments are read, the reader's stream waits for the side stream (`Moments.settle`).
  The host never waits.

The operations are the same, in the same order, so the moments are bit-identical. The current stream
is used on other devices, under `torch.compile` and during the capture of a CUDA graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from prong.statistics.moments import GatheringStream, Moments


class GathersOn(Protocol):
    """An object whose statistics can be gathered on another stream: `prong.Reparametrizer`."""

    def gather_on(self, stream: GatheringStream | None) -> None:
        """Gather on `stream` from now on."""


class SideStream:
    """One additional stream for each CUDA device on which statistics are gathered."""

    def __init__(self) -> None:
        """Create no stream yet, because the model may still be moved to another device."""
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __reduce__(self) -> tuple[type[SideStream], tuple[()]]:
        """Copy or store without the streams, which belong to this process and to this object."""
        return SideStream, ()

    @torch.no_grad()
    def add(self, moments: Moments, samples: Tensor, examples: int, source: Tensor) -> None:
        """Add a batch to moments, on the side stream where that is possible.

        Args:
            moments: moments on the device of the samples.
            samples: `[groups, samples, in]`, as for `Moments.add`.
            examples: number of examples in the batch.
            source: the tensor that the samples were taken from. It may be overwritten as soon as
                this method returns.
        """
        if not _has_streams(samples):
            moments.add(samples, examples)
            return
        # Copy on the current stream, before the side stream starts: later work on the current
        # stream that overwrites the source then runs after the copy.
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
        """Let the current stream of a device, or of all devices, wait for the side stream.

        Args:
            device: the device of the tensors that will be read; None for all devices.
        """
        for own, stream in self._streams.items():
            if device is not None and own != device:
                continue
            current = torch.cuda.current_stream(own)
            # A captured graph must not wait for work outside of it. A capture begins after all
            # streams have finished.
            if current != stream and not _captures(own):
                current.wait_stream(stream)


def gather_on_side_stream(natural: GathersOn) -> None:
    """Let a `prong.Reparametrizer` gather its statistics on a separate CUDA stream.

    The statistics are bit-identical. There is no effect on other devices, under `torch.compile`, or
    in a captured CUDA graph. On an H100 no gain in time was measured: docs/performance.md.
    """
    natural.gather_on(SideStream())


def _has_streams(samples: Tensor) -> bool:
    """Return whether work on `samples` may be queued on a side stream."""
    return (
        not torch.compiler.is_compiling()
        and samples.device.type == "cuda"
        and not _captures(samples.device)
    )


def _captures(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on the current stream of a device."""
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
