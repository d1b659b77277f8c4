"""Copies to the device that run beside its forwards; on the CPU, where there is nothing to overlap, plain calls."""

import contextlib
from collections.abc import Iterator

import torch


class SideStream:
    """A stream for writing what forwards on other streams read.

    What is written may be read after `wait_for_writes`; what was read may be overwritten after `mark_read`. Nobody
    waits on the host. Calls that write or mark must not overlap.

    Args:
        device: that of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_real = device.type == "cuda"
        if self._is_real:  # torch gives neither of these types
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._written, self._read = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Copies made in here go to the side stream, behind the last forward that was marked."""
        if not self._is_real:
            yield
            return
        self._stream.wait_event(self._read)
        with torch.cuda.stream(self._stream):
            yield
            self._written.record()

    def wait_for_writes(self) -> None:
        """What the calling thread sends to the device from now on sees all that was written."""
        if self._is_real:
            torch.cuda.current_stream(self._device).wait_event(self._written)

    def mark_read(self) -> None:
        """What the calling thread has sent to the device so far is what the next write waits for."""
        if self._is_real:
            self._read.record(torch.cuda.current_stream(self._device))
