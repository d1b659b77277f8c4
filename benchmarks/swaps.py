"""Swap load: the most popular domain changes its version many times a second while requests run.

Every activation goes to a version that the server has never loaded. Phases with and without swaps alternate at one
offered rate. Every answer must come from one version that was live at some moment of its request.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from benchmarks.answers import Answer, Swap, is_mixed, is_stale, percentile_ms
from benchmarks.load import arrival_times, send
from benchmarks.ratios import ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server

N_PAIRS = 3
PER_S = 10.0
"""Activations per second."""
LOAD = 0.4
"""Offered rate as a share of the capacity."""
AFTER_LOAD_S = 1.0
"""Swaps go on this much longer than the schedule, since the load generator takes a moment to start."""


@dataclass(frozen=True)
class Phase:
    """A phase of load with the swaps made in it."""

    answers: list[Answer]
    swaps: list[Swap]

    @property
    def latencies_s(self) -> list[float]:
        """Latencies of its answered requests."""
        return [answer.latency_s for answer in self.answers if answer.is_good]

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latencies."""
        return percentile_ms(self.latencies_s, 99)


def n_versions(seconds: float) -> int:
    """Versions of the first domain that a measurement of this length needs."""
    return 2 + math.ceil(PER_S * (seconds / 2 + N_PAIRS * (AFTER_LOAD_S + 1)))


def swap_for(server: Server, domain: str, versions: Iterator[int], duration_s: float) -> list[Swap]:
    """Activate the next versions at a steady rate, or as fast as the server confirms them."""
    began_s = time.monotonic()
    swaps: list[Swap] = []
    while (due_s := len(swaps) / PER_S) < duration_s and time.monotonic() - began_s < duration_s:
        time.sleep(max(0.0, began_s + due_s - time.monotonic()))
        swaps.append(server.activate(domain, next(versions)))
    return swaps


def swap_load(server: Server, report: Report, *, rate_per_s: float, seconds: float) -> None:
    """Alternate phases with and without swaps and report the latencies and the wrong answers."""
    domain, phase_s = server.domains[0], seconds / (2 * N_PAIRS)
    versions = count(2)
    phases: list[Phase] = []
    memory = [server.metrics()["process_resident_memory_bytes"]]
    for index in range(2 * N_PAIRS):
        load = server.load(due_s=arrival_times(rate_per_s, phase_s, seed=index), n_connections=256)
        made: list[Swap] = []

        def swap(made: list[Swap] = made) -> None:
            made += swap_for(server, domain, versions, phase_s + AFTER_LOAD_S)

        answers = send(load, meanwhile=swap) if index % 2 else send(load)
        phases.append(Phase(answers, made))
    memory.append(server.metrics()["process_resident_memory_bytes"])
    add_swap_load(report, phases, domain, server, memory)


def add_swap_load(report: Report, phases: list[Phase], domain: str, server: Server, memory: list[float]) -> None:
    """Add the numbers of all phases, without and with swaps in turn, to a report."""
    swaps = [Swap(domain, 1, -math.inf, -math.inf), *(swap for phase in phases for swap in phase.swaps)]
    answers = [answer for phase in phases for answer in phase.answers]
    good = [answer for answer in answers if answer.is_good]
    calm, swapping = phases[::2], phases[1::2]
    pooled = [percentile_ms([one for phase in some for one in phase.latencies_s], 99) for some in (swapping, calm)]
    report.add("swap_p99_ratio", pooled[0] / pooled[1], "p99 latency with swaps / without", Target("<=", 1.2))
    by_pair = ratio([phase.p99_ms for phase in swapping], [phase.p99_ms for phase in calm])
    report.add("swap_p99_ratio_by_pair", by_pair, "the same, each phase with swaps / the one before it")
    none = Target("<=", 0)
    report.add("swap_failed", len(answers) - len(good), f"of {len(answers):,} requests, refusals included", none)
    stale = sum(is_stale(answer, swaps) for answer in good)
    report.add("swap_stale", stale, "answers of a version that was live at no moment of the request", none)
    mixed = sum(is_mixed(answer, server.digests) for answer in good)
    report.add("swap_mixed", mixed, "answers that mix versions", none)
    busy_s = sum(phase.swaps[-1].done_s - phase.swaps[0].requested_s for phase in swapping)
    report.add("swaps_per_s", (len(swaps) - 1) / busy_s, "confirmed activations of new versions per second")
    before, after = (value / 2**20 for value in memory)
    report.add("swap_memory_mib", after - before, f"growth of resident memory over {len(swaps) - 1} swaps, MiB")
    rows = [
        (
            "swaps" if phase.swaps else "no swaps",
            len(phase.answers),
            f"{percentile_ms(phase.latencies_s, 50):.1f}",
            f"{phase.p99_ms:.1f}",
            len(phase.swaps),
            f"{1000 * max(swap.done_s - swap.requested_s for swap in phase.swaps):.1f}" if phase.swaps else "",
        )
        for phase in phases
    ]
    headings = ("phase", "requests", "p50 ms", "p99 ms", "activations", "slowest activation ms")
    report.tables["Swap load"] = Table(headings, rows)
