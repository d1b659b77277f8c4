"""Tensors on their way between the host and a device, while both go on with other things.

On the CPU nothing has to travel, and all of these are plain calls. Knows streams and events. Does not know what a
tensor means.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(numbers: NDArray[np.int64] | NDArray[np.float64] | list[int], device: torch.device) -> Tensor:
    """A few numbers on the device; the host does not wait for the copy, as it would if a list were the index."""
    tensor = torch.from_numpy(np.asarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Outbound:
    """A lane to a device beside what runs there; several threads may use it.

    Args:
        device: where tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: Tensor) -> "Sent":
        """Begin to copy a tensor; from pinned memory neither the host nor the forward that runs waits for it."""
        if self._stream is None or tensor.device.type == "cuda":
            return Sent(tensor.to(self._device), None)
        with torch.cuda.stream(self._stream):
            there = tensor.to(self._device, non_blocking=True)
            return Sent(there, self._stream.record_event())


class Sent:
    """A tensor that is on its way to a device."""

    def __init__(self, there: Tensor, arrival: torch.cuda.Event | None) -> None:
        self._there = there
        self._arrival = arrival

    def received(self) -> Tensor:
        """The tensor, for what the calling thread sends to the device from now on; that waits for it, not the host."""
        if self._arrival is not None:
            stream = torch.cuda.current_stream(self._there.device)
            stream.wait_event(self._arrival)
            self._there.record_stream(stream)  # its memory is the other stream's: not to be used again before this one
        return self._there


class Inbound:
    """Tensors that are on their way to the host.

    Args:
        tensors: as they will be when all that the calling thread has sent to their device is done.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._arrival: torch.cuda.Event | None = None
        self._here = tensors
        if tensors[0].device.type == "cuda":
            self._here = tuple(
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            )
            # An event that lets the waiting thread sleep: the others need the cores.
            self._arrival = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrival.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they are here; others may send to the device meanwhile."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._here
