"""Latencies of servers under Poisson arrivals, by simulation.

A request passes HTTP (one at a time, as on an event loop) and decoding (each image on the next free core), and waits
for the device, where batches form by the rules of `service/scheduler/batcher.py`, with its predictions. All times are
measured means. Not modelled: deadlines and refusals, priorities, domains, loads of versions, and fluctuations of the
times.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from caspl.capacity.measurements import Measurements
from service.scheduler.admission import Admission
from service.scheduler.batcher import GATHER_ROWS, GATHER_S, PREPARE_S

Balancing = Literal["random", "two-choices"]
"""How requests are distributed: to any server, or to the one with fewer open requests of two random ones."""
WARM_UP: Final = 0.1
"""Share of the requests that only fill the queues."""
READY, TIMER, DONE = range(3)


@dataclass(frozen=True)
class Simulation:
    """Latency of each request in seconds, and the mean number of images per batch."""

    latencies_s: NDArray[np.float64]
    rows_per_batch: float

    def ms(self, percent: float) -> float:
        """A percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies_s, percent)) * 1000


class _Server:
    """One server's queues. Rows are numbers of their requests."""

    def __init__(self, times: Measurements, slowdown: float) -> None:
        self._times, self._slowdown = times, slowdown
        self._http_free_s = 0.0
        self._cores_free_s, self._device_free_s = [0.0] * times.n_cores, [0.0] * times.n_concurrent
        self._gather_until_s, self._gather_rows = 0.0, 0
        self._was_concurrent = False
        self._admission = Admission(times.max_rows, times.n_concurrent)
        self.queue: deque[int] = deque()
        self.n_open = 0

    def ready_s(self, now_s: float, n_images: int) -> float:
        """When a request that arrives now has all its images decoded."""
        self.n_open += 1
        self._http_free_s = begin_s = max(now_s, self._http_free_s) + self._times.request_s
        decoded_s = begin_s
        for _ in range(n_images):
            free_s = max(begin_s, self._cores_free_s[0]) + self._times.decode_s
            heapq.heapreplace(self._cores_free_s, free_s)
            decoded_s = max(decoded_s, free_s)
        return decoded_s

    def hold_s(self, now_s: float) -> float:
        """Seconds to hold the next batch back (`Batcher._hold_s`)."""
        if len(self.queue) >= self._times.max_rows:
            return 0.0
        if not self._admission.is_idle:
            return self._admission.free_in_s(now_s) - PREPARE_S
        return self._gather_until_s - now_s if len(self.queue) < self._gather_rows else 0.0

    def start(self, now_s: float, n_sharing: int) -> tuple[float, list[int]]:
        """Hand over a batch; returns when it ends and its rows."""
        times, n_queued = self._times, len(self.queue)
        rows = [self.queue.popleft() for _ in range(min(times.max_rows, -(-n_queued // n_sharing)))]
        is_concurrent = self._admission.n_running > 0 or (n_sharing > 1 and bool(self.queue))
        uses_all_cores = not (is_concurrent or self._was_concurrent) and len(rows) < times.n_concurrent
        taken_s = self._slowdown * (times.alone_s if uses_all_cores else times.batch_s(len(rows)))
        self._was_concurrent = is_concurrent
        ends_s = max(now_s, self._device_free_s[0]) + taken_s
        heapq.heapreplace(self._device_free_s, ends_s)
        self._admission.start(id(rows), len(rows), now_s)
        self._gather_rows = 0
        return ends_s, rows

    def dispatch(self, now_s: float) -> tuple[list[tuple[float, list[int]]], float]:
        """Start as many batches as the rules allow; also returns when to try again, or 0."""
        batches: list[tuple[float, list[int]]] = []
        times, n_busy = self._times, self._admission.n_running
        while self.queue and (n_running := self._admission.n_running) < times.n_concurrent + times.n_pipelined:
            if (hold_s := self.hold_s(now_s)) > 1e-4:
                return batches, now_s + hold_s
            batches.append(self.start(now_s, max(1, times.n_concurrent + n_busy - n_running)))
        return batches, 0.0

    def end(self, now_s: float, began_s: float, rows: list[int]) -> None:
        """A batch has ended that was handed over at `began_s`."""
        self._admission.finish(id(rows), now_s, is_typical=True)
        self._gather_until_s = now_s + min(GATHER_S, (now_s - began_s) / 4)
        self._gather_rows = min(len(rows), GATHER_ROWS) if self._times.n_concurrent == 1 else 0


def simulate(  # noqa: C901  one event loop with its state
    times: Measurements,
    arrivals_s: NDArray[np.float64],
    *,
    images_per_request: int = 1,
    n_servers: int = 1,
    balancing: Balancing = "random",
    seed: int = 0,
) -> Simulation:
    """Let requests arrive and be answered.

    Args:
        times: of each server.
        arrivals_s: ascending times at which requests arrive at all servers together; at least one.
        images_per_request: images of each of them.
        n_servers: servers that share them.
        balancing: how.
        seed: of the distribution.

    Returns:
        Latencies in the order of the arrivals, without the first tenth.
    """
    span_s = float(arrivals_s[-1] - arrivals_s[0])
    images_per_s = images_per_request * (len(arrivals_s) - 1) / span_s / n_servers if span_s else 0.0
    slowdown = times.slowdown(images_per_s, images_per_request)
    if slowdown == np.inf:
        raise ValueError(f"{images_per_s:.1f} images/s exceed the capacity of the cores")
    servers = [_Server(times, slowdown) for _ in range(n_servers)]
    chance, order = random.Random(seed), count()  # noqa: S311  not for secrets
    events: list[tuple[float, int, int, _Server, float, list[int]]] = []
    n_left, latencies_s = [images_per_request] * len(arrivals_s), np.zeros(len(arrivals_s))
    n_batches = n_rows = 0

    def push(when_s: float, kind: int, server: _Server, began_s: float, rows: list[int]) -> None:
        heapq.heappush(events, (when_s, next(order), kind, server, began_s, rows))

    def handle_next() -> None:
        nonlocal n_batches, n_rows
        now_s, _, kind, server, began_s, rows = heapq.heappop(events)
        if kind == READY:
            server.queue.extend(rows)
        elif kind == DONE:
            server.end(now_s, began_s, rows)
            for request in rows:
                n_left[request] -= 1
                if not n_left[request]:
                    server.n_open -= 1
                    latencies_s[request] = now_s - arrivals_s[request] + times.network_s
        batches, again_s = server.dispatch(now_s)
        for ends_s, batch in batches:
            n_batches, n_rows = n_batches + 1, n_rows + len(batch)
            push(ends_s, DONE, server, now_s, batch)
        if again_s:
            push(again_s, TIMER, server, 0.0, [])

    for request, now_s in enumerate(arrivals_s.tolist()):
        while events and events[0][0] <= now_s:
            handle_next()
        first, second = chance.randrange(n_servers), chance.randrange(n_servers)
        server = servers[first]
        if balancing == "two-choices" and servers[second].n_open < server.n_open:
            server = servers[second]
        push(server.ready_s(now_s, images_per_request), READY, server, 0.0, [request] * images_per_request)
    while events:
        handle_next()
    return Simulation(latencies_s[int(WARM_UP * len(arrivals_s)) :], n_rows / n_batches)


def poisson_arrivals(rate_per_s: float, n_requests: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Arrival times of a Poisson process in seconds; another rate only scales them."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_per_s, n_requests))
