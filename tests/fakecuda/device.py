"""A simulated CUDA device: streams that run late and in random order, events, sticky errors, failing allocations.

Kernels and copies are queued per stream. They run when the host waits, or at random moments before, in any order that
streams and events allow. Races are found when work is queued: vector clocks show whether two accesses to the same
memory are ordered by streams, events and host waits, whichever of them happens to run first.
"""

import threading
from collections import Counter, deque
from contextlib import contextmanager
from random import Random

import torch


class Marker:
    """A point in a stream that other streams and the host can wait for."""

    def __init__(self, clock):
        self.clock, self.is_reached = clock, False


class Stream:
    """A queue of work; stands for `torch.cuda.Stream`.

    Attributes:
        clock: per stream, the number of its operations that are done before the next operation of this one starts.
    """

    def __init__(self, simulated):
        self._simulated = simulated
        self.device = torch.device("cuda", 0)
        self.clock, self.n_operations = {}, 0
        self.tasks = deque()  # markers to reach or wait for, and functions
        simulated.streams.append(self)

    def tick(self):
        """The clock of a new operation."""
        self.n_operations += 1
        merge(self.clock, self._simulated.host_clock)
        self.clock[self] = self.n_operations
        return dict(self.clock)

    def record_event(self, event=None):
        event = event or Event(self._simulated)
        event.record(self)
        return event

    def wait_event(self, event):
        with self._simulated.lock:
            capture = self._simulated.capture
            if capture is not None and capture.stream is self and event.capture is not capture:
                capture.invalidate("a wait for an event from outside")
                raise cuda_error("dependency created on uncaptured work in another stream")
            if event.marker is not None:
                self.tasks.append(("wait", event.marker))
                merge(self.clock, event.marker.clock)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def synchronize(self):
        self._simulated.wait_for([self], "cudaStreamSynchronize")

    def query(self):
        return not self.tasks

    @property
    def is_ready(self):
        """Whether its first task can run."""
        return bool(self.tasks) and (self.tasks[0][0] != "wait" or self.tasks[0][1].is_reached)


class Event:
    """Stands for `torch.cuda.Event`."""

    def __init__(self, simulated, **_):
        self._simulated = simulated
        self.marker = self.capture = None

    def record(self, stream=None):
        with self._simulated.lock:
            self._simulated.raise_sticky()
            stream = stream or self._simulated.current_stream()
            self.marker = Marker(stream.tick())
            capture = self._simulated.capture
            self.capture = capture if capture is not None and capture.stream is stream else None
            stream.tasks.append(("reach", self.marker))
            self._simulated.run_some()

    def wait(self, stream=None):
        (stream or self._simulated.current_stream()).wait_event(self)

    def synchronize(self):
        with self._simulated.lock:
            self._simulated.forbid_in_capture("cudaEventSynchronize")
            self._simulated.waits["cudaEventSynchronize"] += 1
            if self.marker is not None:
                self._simulated.run_until(lambda: self.marker.is_reached)
                merge(self._simulated.host_clock, self.marker.clock)
            self._simulated.raise_sticky()

    def query(self):
        return self.marker is None or self.marker.is_reached


class SimulatedDevice:
    """One GPU.

    Args:
        seed: chooses the order of work.
        eagerness: the probability that queued work runs before the host waits; 0 is as late as possible.

    Attributes:
        violations: races and uses of freed memory found so far, in words.
        sticky: once set, the message of the CUDA error that every further call raises.
        n_allocations_left: allocations until one fails, which resets it; None for no failure.
        memory_error: what a failing allocation raises.
        n_invalid_captures: how many of the next captures are invalidated.
        ends_invalid_captures: whether torch ends the allocator's part of an invalidated capture (since 2.13).
        capability: the compute capability.
        launches: how many kernels and copies were queued, by name; not those of graphs.
        waits: how often the host waited, by name.
    """

    def __init__(self, *, seed=0, eagerness=0.0):
        self.lock = threading.RLock()
        self.violations = []
        self.sticky = None
        self.n_allocations_left = None
        self.memory_error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        self.n_invalid_captures = 0
        self.ends_invalid_captures = True
        self.capability = (9, 0)
        self.capture = None  # of `graphs.Capture`
        self.n_underway = 0  # captures that the allocator counts as in progress
        self.host_clock = {}
        self.streams = []
        self.pinned = {}  # storages by address
        self.launches, self.waits = Counter(), Counter()
        self._eagerness, self._random = eagerness, Random(seed)  # noqa: S311 - a schedule, no secret
        self._threads = threading.local()
        self.default_stream = Stream(self)

    def current_stream(self, device=None):
        return getattr(self._threads, "stream", self.default_stream)

    @property
    def is_captured(self):
        """Whether work on this thread's stream becomes part of a graph now."""
        return self.capture is not None and self.capture.stream is self.current_stream()

    @contextmanager
    def on_stream(self, stream):
        """Make a stream the current one of this thread; no effect for None."""
        before = self.current_stream()
        self._threads.stream = stream or before
        try:
            yield
        finally:
            self._threads.stream = before

    def submit(self, name, work, reads, writes):
        """Queue work on the current stream.

        Args:
            name: for messages.
            work: changes host memory.
            reads: the device tensors that it reads.
            writes: the device tensors that it writes.
        """
        with self.lock:
            self.raise_sticky()
            stream = self.current_stream()
            if self.is_captured:
                self.capture.add(name, work, reads, writes)
                return
            self.launches[name] += 1
            clock = stream.tick()
            for kind, tensors in (("read", reads), ("write", writes)):
                for tensor in tensors:
                    tensor.access(kind, stream, clock, name)
            self.enqueue(stream, name, work)

    def enqueue(self, stream, name, work):
        """Queue work whose accesses are checked already."""
        stream.tasks.append((name, work))
        self.run_some()

    def allocate(self):
        """Count an allocation; raises `memory_error` if it is the one that fails."""
        if self.n_allocations_left is None:
            return
        self.n_allocations_left -= 1
        if self.n_allocations_left < 0:
            self.n_allocations_left = None
            raise self.memory_error

    def synchronize(self, device=None):
        with self.lock:
            if self.capture is not None:  # of any thread, whatever its mode
                self.capture.invalidate("cudaDeviceSynchronize")
                raise cuda_error("operation not permitted when stream is capturing (cudaDeviceSynchronize)")
        self.wait_for(self.streams, "cudaDeviceSynchronize")

    def wait_for(self, streams, name):
        """Run all work of some streams; the host waits for it."""
        with self.lock:
            self.forbid_in_capture(name)
            self.waits[name] += 1
            streams = list(streams)
            self.run_until(lambda: not any(stream.tasks for stream in streams))
            for stream in streams:
                merge(self.host_clock, stream.clock)
            self.raise_sticky()

    def finish(self):
        """Run what is still queued, unless an error made the device unusable."""
        with self.lock:
            if self.sticky is None:
                self.run_until(lambda: not any(stream.tasks for stream in self.streams))

    def run_until(self, is_done):
        while not is_done():
            if not self._step():
                msg = "The simulated device is in a deadlock."
                raise RuntimeError(msg)

    def run_some(self):
        """Run queued work, or not."""
        while self._random.random() < self._eagerness and self._step():
            pass

    def _step(self):
        ready = [stream for stream in self.streams if stream.is_ready]
        if not ready:
            return False
        kind, task = self._random.choice(ready).tasks.popleft()
        if kind == "reach":
            task.is_reached = True
        elif kind != "wait":
            try:
                with torch.inference_mode():
                    task()
            except Exception as error:  # noqa: BLE001 - on a GPU the kernel fails; a later call raises its error
                self.violate(f"{kind} failed: {error!r}")
                self.sticky = "device-side assert triggered"
        return True

    def forbid_in_capture(self, name):
        """Raise, and end the capture, for a call that CUDA forbids during one."""
        capture = self.capture
        if capture is not None and capture.forbids_here():
            capture.invalidate(name)
            msg = f"operation not permitted when stream is capturing ({name})"
            raise cuda_error(msg)

    def raise_sticky(self):
        if self.sticky is not None:
            raise cuda_error(self.sticky)

    def violate(self, text):
        if text not in self.violations:
            self.violations.append(text)

    def empty_cache(self):
        with self.lock:
            self.raise_sticky()
            if self.n_underway:
                self.violate("empty_cache during a capture, or after one that did not end")


def merge(clock, other):
    """Advance a clock to another one: the maximum of both per stream."""
    for stream, n_operations in other.items():
        clock[stream] = max(clock.get(stream, 0), n_operations)


def cuda_error(message):
    return torch.AcceleratorError(f"CUDA error: {message}")
