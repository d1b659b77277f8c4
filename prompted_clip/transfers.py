"""Copies between host and device memory.

On CUDA every kernel and every small copy is queued on the device's current stream, which runs them in order. Only
images have a copy stream of their own, so that the next batch is copied during the present forward.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")


def map_tensors(part: T, change: Callable[[Tensor], Tensor]) -> T:
    """A copy of a dataclass with `change` applied to its tensors, recursively."""
    changed: dict[str, Any] = {
        name: change(value) if isinstance(value, Tensor) else map_tensors(value, change)
        for name, value in vars(part).items()
        if isinstance(value, Tensor) or dataclasses.is_dataclass(value)
    }
    return dataclasses.replace(part, **changed)  # type: ignore[type-var]


def nbytes(part: object) -> int:
    """Bytes of a dataclass's tensors, recursively."""
    if isinstance(part, Tensor):
        return part.nbytes
    return sum(map(nbytes, vars(part).values())) if dataclasses.is_dataclass(part) else 0


def to_device(values: Tensor | NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Numbers in host memory as a tensor on the device; the host does not wait for the copy.

    A tensor that is there already is returned as it is.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """D2H copies of tensors on one CUDA device, complete on return; one copy of their bytes.

    The calling thread sleeps until the copies are done, without the GIL, and does not wait for work queued later.
    """
    widest_first = sorted(tensors, key=lambda tensor: -tensor.itemsize)  # each begins at a multiple of its item size
    packed = torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in widest_first])
    host = torch.empty(len(packed), dtype=torch.uint8, pin_memory=True).copy_(packed, non_blocking=True)
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(tensors[0].device))
    done.synchronize()
    parts = torch.split(host, [tensor.nbytes for tensor in widest_first])
    copies = {
        id(tensor): part.view(tensor.dtype).view(tensor.shape) for tensor, part in zip(widest_first, parts, strict=True)
    }
    return tuple(copies[id(tensor)] for tensor in tensors)


class CopyStream:
    """A CUDA stream for H2D copies that overlap with kernels; several threads may use it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; the current stream waits for the copy, the host does not if memory is pinned."""
        if tensor.device.type == "cuda":
            return tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            there = tensor.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        there.record_stream(current)  # the allocator must not reuse its memory before `current` has read it
        return there
