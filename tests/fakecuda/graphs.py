"""Simulated CUDA graphs: capture rules, one memory pool, replays that overwrite it."""

import threading
import weakref
from dataclasses import dataclass

from tests.fakecuda.device import cuda_error
from tests.fakecuda.memory import poison

LIFETIME = "A replay uses memory that was freed after the capture."


class Pool:
    """Memory shared by graphs. A replay may overwrite all of it, and poisons the outputs of other graphs."""

    def __init__(self, simulated):
        self._simulated = simulated
        self.hosts = []
        self.n_replays = 0
        self._last = {}  # (stream, kind) -> number of the operation

    def access(self, kind, stream, clock, name):
        """Check an access to any of its memory."""
        for (other, other_kind), number in self._last.items():
            if "write" in (kind, other_kind) and clock.get(other, 0) < number:
                self._simulated.violate(f"race in graph memory: {name} ({kind}) is not ordered after a {other_kind}")
        self._last[stream, kind] = clock[stream]


@dataclass
class Operation:
    """A captured operation; it does not keep its memory alive."""

    name: str
    work: object
    accesses: list  # (weak block, host tensor, kind)


class Capture:
    """A capture in progress."""

    def __init__(self, stream, pool, mode):
        self.stream, self.pool, self._mode = stream, pool, mode
        self._thread = threading.get_ident()
        self.operations, self.error = [], None

    def add(self, name, work, reads, writes):
        accesses = [
            (weakref.ref(tensor.block), tensor.host, kind)
            for kind, tensors in (("read", reads), ("write", writes))
            for tensor in tensors
        ]
        self.operations.append(Operation(name, work, accesses))

    def forbids_here(self):
        """Whether this thread may not make unsafe calls."""
        return self._mode == "global" or (self._mode == "thread_local" and self._thread == threading.get_ident())

    def invalidate(self, reason):
        self.error = self.error or reason


class Graph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self, simulated):
        self._simulated = simulated
        self.operations = self.pool = None

    def capture_begin(self, pool=None, capture_error_mode="global"):
        simulated = self._simulated
        with simulated.lock:
            simulated.raise_sticky()
            if simulated.capture is not None:
                msg = "Two captures at once: not simulated."
                raise RuntimeError(msg)
            if simulated.current_stream() is simulated.default_stream:
                msg = "CUDA graphs must be captured on a non-default stream."
                raise RuntimeError(msg)
            if simulated.n_underway:
                simulated.violate("a capture begins after one that did not end")
            simulated.n_underway += 1
            simulated.capture = Capture(simulated.current_stream(), pool or Pool(simulated), capture_error_mode)
            if simulated.n_invalid_captures:
                simulated.n_invalid_captures -= 1
                simulated.capture.invalidate("set by the test")

    def capture_end(self):
        simulated = self._simulated
        with simulated.lock:
            capture, simulated.capture = simulated.capture, None
            if capture.error is None or simulated.ends_invalid_captures:
                simulated.n_underway -= 1
            if capture.error is not None:
                raise cuda_error("operation failed due to a previous error during capture")
            self.operations, self.pool = capture.operations, capture.pool

    def replay(self):
        simulated = self._simulated
        with simulated.lock:
            simulated.forbid_in_capture("cudaGraphLaunch")
            simulated.raise_sticky()
            stream = simulated.current_stream()
            clock = stream.tick()
            self.pool.n_replays += 1
            self.pool.access("write", stream, clock, "replay")
            for operation in self.operations:
                for weak_block, host, kind in operation.accesses:
                    block = weak_block()
                    if block is not None and block.pool is None:
                        block.access(kind, host, stream, clock, operation.name)
                    elif block is None and not any(host.untyped_storage()._cdata == own for own in self.pool_storages):
                        simulated.violate(LIFETIME)
            simulated.enqueue(stream, "replay", self._run)

    @property
    def pool_storages(self):
        return {host.untyped_storage()._cdata for host in self.pool.hosts}

    def _run(self):
        for host in self.pool.hosts:
            poison(host)
        for operation in self.operations:
            operation.work()
