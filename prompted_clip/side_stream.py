"""Copies to the device that run beside its forwards; on the CPU, where there is nothing to overlap, plain calls."""

import contextlib
from collections.abc import Iterator

import torch


class SideStream:
    """A stream for writing what forwards on other streams read.

    What is written may be read after `wait_for_writes`; what was read may be overwritten once `write_after` was told of
    it. Nobody waits on the host. Calls that write must not overlap.

    Args:
        device: that of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_real = device.type == "cuda"
        if self._is_real:  # torch gives neither of these types
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._written = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Copies made in here go to the side stream."""
        if not self._is_real:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
            self._written.record()

    def wait_for_writes(self) -> None:
        """What the calling thread sends to the device from now on sees all that was written."""
        if self._is_real:
            torch.cuda.current_stream(self._device).wait_event(self._written)

    def read_until_now(self) -> torch.cuda.Event | None:
        """A mark behind all that the calling thread has sent to the device so far."""
        return torch.cuda.current_stream(self._device).record_event() if self._is_real else None

    def write_after(self, mark: torch.cuda.Event | None) -> None:
        """Have all further writes wait for what is before a mark."""
        if mark is not None:
            self._stream.wait_event(mark)
