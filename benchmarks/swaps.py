"""Swap load: the most popular domain changes its version many times a second while requests run.

Every activation goes to a version that the server has never loaded. Phases with and without swaps alternate at one
offered rate. Every answer must come from one version that was live at some moment of its request.
"""

import math
import time
from collections.abc import Iterator
from itertools import count

from benchmarks.answers import Swap, is_mixed, is_stale
from benchmarks.phases import N_PAIRS, Phase, add_p99_ratios, alternate, phase_table
from benchmarks.report import Report, Target
from benchmarks.server import Server

PER_S = 10.0
"""Activations per second."""
AFTER_LOAD_S = 1.0
"""Swaps go on this much longer than the schedule, since the load generator takes a moment to start."""


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
    domain, versions = server.domains[0], count(2)
    memory = [server.metrics()["process_resident_memory_bytes"]]

    def swaps(phase_s: float) -> list[Swap]:
        return swap_for(server, domain, versions, phase_s + AFTER_LOAD_S)

    phases = alternate(server, swaps, rate_per_s=rate_per_s, seconds=seconds)
    memory.append(server.metrics()["process_resident_memory_bytes"])
    add_swap_load(report, phases, domain, server, memory)


def add_swap_load(report: Report, phases: list[Phase[Swap]], domain: str, server: Server, memory: list[float]) -> None:
    """Add the numbers of all phases, without and with swaps in turn, to a report."""
    swaps = [Swap(domain, 1, -math.inf, -math.inf), *(swap for phase in phases for swap in phase.work)]
    answers = [answer for phase in phases for answer in phase.answers]
    good = [answer for answer in answers if answer.is_good]
    add_p99_ratios(report, phases, "swap", Target("<=", 1.2))
    none = Target("<=", 0)
    report.add("swap_failed", len(answers) - len(good), f"of {len(answers):,} requests, refusals included", none)
    stale = sum(is_stale(answer, swaps) for answer in good)
    report.add("swap_stale", stale, "answers of a version that was live at no moment of the request", none)
    mixed = sum(is_mixed(answer, server.digests) for answer in good)
    report.add("swap_mixed", mixed, "answers that mix versions", none)
    busy_s = sum(phase.work[-1].done_s - phase.work[0].requested_s for phase in phases[1::2])
    report.add("swaps_per_s", (len(swaps) - 1) / busy_s, "confirmed activations of new versions per second")
    before, after = (value / 2**20 for value in memory)
    report.add("swap_memory_mib", after - before, f"growth of resident memory over {len(swaps) - 1} swaps, MiB")

    def slowest(swaps: list[Swap]) -> str:
        return f"{1000 * max(swap.done_s - swap.requested_s for swap in swaps):.1f}"

    headings = ("activations", "slowest activation ms")
    report.tables["Swap load"] = phase_table(phases, "swap", headings, slowest)
