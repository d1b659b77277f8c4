"""Device memory: full of NaN until it is written, checked for races, poisoned again when it is freed."""

import torch

from tests.fakecuda.device import Marker, Stream, merge


class Block:
    """One allocation.

    Args:
        simulated: the device.
        host: the host memory that stands for it; all NaN, or a large integer.
        pool: the memory pool of CUDA graphs that it belongs to, if any.
    """

    def __init__(self, simulated, host, pool=None):
        self._simulated, self._host, self.pool = simulated, host, pool
        self._stream = simulated.current_stream()
        self.used_by = set()  # streams of `record_stream`
        self._accesses = {}  # (stream, kind, first byte, last byte) -> (number of the operation, its name)

    def access(self, kind, host, stream, clock, name):
        """Check an access by an operation with this clock, and remember it."""
        first, last = span(host)
        for (other, other_kind, low, high), (number, other_name) in self._accesses.items():
            is_ordered = clock.get(other, 0) >= number
            if "write" in (kind, other_kind) and low < last and first < high and not is_ordered:
                self._simulated.violate(f"race: {other_name} ({other_kind}) and {name} ({kind}) are not ordered")
        self._accesses[stream, kind, first, last] = (clock[stream], name)

    def __del__(self):
        if self.pool is None:
            with self._simulated.lock:
                self._free()

    def _free(self):
        """The allocator reuses it for its own stream, behind the work there and on the streams of `record_stream`."""
        allocator = dict(self._stream.clock)
        for clock in (self._simulated.host_clock, *(stream.clock for stream in self.used_by)):
            merge(allocator, clock)
        for (stream, kind, *_), (number, name) in self._accesses.items():
            if allocator.get(stream, 0) < number:
                self._simulated.violate(f"freed in use: {name} ({kind}) may run after the memory is reused")
        reuse, host, streams = Stream(self._simulated), self._host, self._simulated.streams  # not self, which is gone
        for stream in {self._stream, *self.used_by}:
            marker = Marker({})
            stream.tasks.append(("reach", marker))
            reuse.tasks.append(("wait", marker))
        reuse.tasks.append(("reuse", lambda: poison(host)))
        reuse.tasks.append(("reuse", lambda: streams.remove(reuse)))


def span(host):
    """The bytes of a tensor's storage from its first element to its last."""
    first = host.storage_offset()
    if host.numel() == 0:
        return first, first
    last = first + sum((size - 1) * step for size, step in zip(host.shape, host.stride(), strict=True))
    return first * host.element_size(), (last + 1) * host.element_size()


@torch.inference_mode()
def poison(host):
    """Fill memory with values that no correct result contains."""
    if host.numel() == 0:
        return
    n_elements = host.untyped_storage().nbytes() // host.element_size()
    flat = host.as_strided((n_elements,), (1,), 0)
    if host.is_floating_point():
        flat.fill_(float("nan"))
    else:
        flat.fill_(True if host.dtype == torch.bool else 113 if host.element_size() == 1 else 2**30 - 7)
