"""Number of servers, utilisation, latencies and cost of a load, from one server's measurements."""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np

from caspl.capacity.measurements import Measurements
from caspl.capacity.queueing import Balancing, Simulation, poisson_arrivals, simulate
from caspl.errors import ImpossibleError

MAX_UTILISATION: Final = 0.95
"""No server is planned above this."""
MAX_SIMULATED: Final = 8
"""Servers simulated at once; more behave alike."""
N_REQUESTS: Final = 20_000
STEPS: Final = 10
"""Of the bisection: the largest rate is found to 0.1 % of the capacity."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The latency to keep.

    Attributes:
        p99_ms: 99th percentile of the latency.
        images_per_request: images of each request.
        balancing: how requests are distributed.
        spare: servers that may fail.
    """

    p99_ms: float
    images_per_request: int = 1
    balancing: Balancing = "random"
    spare: int = 1

    def n_simulated(self, n_servers: int) -> int:
        """Servers that stand for `n_servers`: at random each has its own Poisson arrivals, so one does."""
        return 1 if self.balancing == "random" else min(n_servers, MAX_SIMULATED)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Servers for a load.

    Attributes:
        rate_per_s: requests per second, all servers together.
        servers: with the spare ones.
        spare: servers that may fail.
        utilisation: share of the capacity that the load takes, with all servers.
        p50_ms, p99_ms: predicted latencies with all servers.
        p99_without_spare_ms: after the spare ones have failed.
        images_per_batch: mean, with all servers.
        max_rate_per_server: requests per second at which one server still meets the objective.
        capacity_per_server: images per second that one server sustains, without regard to latency.
        limited_by: `device`, `decoding` or `http`.
        headroom: share by which the load may grow, with all servers.
    """

    rate_per_s: float
    servers: int
    spare: int
    utilisation: float
    p50_ms: float
    p99_ms: float
    p99_without_spare_ms: float
    images_per_batch: float
    max_rate_per_server: float
    capacity_per_server: float
    limited_by: str
    headroom: float


def predict(times: Measurements, rate_per_s: float, n_servers: int, objective: Objective) -> Simulation:
    """Latencies of `n_servers` that get `rate_per_s` requests together."""
    n_simulated = objective.n_simulated(n_servers)
    arrivals_s = poisson_arrivals(rate_per_s * n_simulated / n_servers, N_REQUESTS)
    n_images = objective.images_per_request
    return simulate(
        times, arrivals_s, images_per_request=n_images, n_servers=n_simulated, balancing=objective.balancing
    )


def max_rate(times: Measurements, n_servers: int, objective: Objective) -> float:
    """Requests per second of each of `n_servers` at which they still meet the objective.

    Raises:
        ImpossibleError: they do not even meet it without load.
    """
    return _max_rate(times, objective.n_simulated(n_servers), objective)


@cache
def _max_rate(times: Measurements, n_servers: int, objective: Objective) -> float:
    n_images = objective.images_per_request
    capacity_per_s = times.capacity_per_s(n_images) / n_images

    def p99_ms(utilisation: float) -> float:
        return predict(times, utilisation * capacity_per_s * n_servers, n_servers, objective).ms(99)

    idle_ms = simulate(times, np.array([0.0]), images_per_request=n_images).ms(50)
    low, high = 0.01, MAX_UTILISATION
    if objective.p99_ms < idle_ms or p99_ms(low) > objective.p99_ms:
        text = "one image" if n_images == 1 else f"{n_images} images"
        raise ImpossibleError(
            f"A p99 of {objective.p99_ms:g} ms is out of reach. A request with {text} takes {idle_ms:.1f} ms on an "
            f"idle server, and at {low:.0%} of the capacity one percent of them take {p99_ms(low):.1f} ms or longer. "
            "Allow more, or measure a faster device, backbone or dtype."
        )
    if p99_ms(high) <= objective.p99_ms:
        return high * capacity_per_s
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p99_ms(middle) <= objective.p99_ms else (low, middle)
    return low * capacity_per_s


def plan_for_rate(times: Measurements, rate_per_s: float, objective: Objective) -> Plan:
    """The fewest servers that meet the objective at a rate of requests per second, also without the spare ones.

    Raises:
        ImpossibleError: no number does.
    """
    needed = max(1, math.ceil(rate_per_s / max_rate(times, MAX_SIMULATED, objective)))
    while needed < MAX_SIMULATED and rate_per_s > needed * max_rate(times, needed, objective):
        needed += 1  # the fewer servers, the less choice
    return _plan(times, rate_per_s, needed + objective.spare, objective)


def plan_for_servers(times: Measurements, n_servers: int, objective: Objective) -> Plan:
    """The largest rate that `n_servers`, spare ones included, carry.

    Raises:
        ImpossibleError: none.
    """
    if (n_left := n_servers - objective.spare) < 1:
        raise ImpossibleError(f"{n_servers} servers with {objective.spare} spare ones leave none for the load.")
    return _plan(times, n_left * max_rate(times, n_left, objective), n_servers, objective)


def _plan(times: Measurements, rate_per_s: float, n_servers: int, objective: Objective) -> Plan:
    n_images, largest = objective.images_per_request, max_rate(times, n_servers, objective)
    limits = times.limits_per_s(n_images)
    found = partial(predict, times, rate_per_s, objective=objective)
    whole, without_spare = found(n_servers=n_servers), found(n_servers=n_servers - objective.spare)
    capacity_per_s = times.capacity_per_s(n_images)
    return Plan(
        rate_per_s=rate_per_s,
        servers=n_servers,
        spare=objective.spare,
        utilisation=rate_per_s * n_images / (n_servers * capacity_per_s),
        p50_ms=whole.ms(50),
        p99_ms=whole.ms(99),
        p99_without_spare_ms=without_spare.ms(99),
        images_per_batch=whole.rows_per_batch,
        max_rate_per_server=largest,
        capacity_per_server=capacity_per_s,
        limited_by=min(limits, key=lambda name: limits[name]),
        headroom=n_servers * largest / rate_per_s - 1,
    )


def cost_per_million(plan: Plan, images_per_request: int, price_per_hour: float) -> float:
    """Cost of a million images, spare servers included, if the load is always on."""
    return plan.servers * price_per_hour / (plan.rate_per_s * images_per_request * 3600) * 1e6
