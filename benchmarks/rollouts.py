"""Rollout load: a candidate of the most popular domain scores copies of all its images while requests run.

Phases with and without the rollout alternate at one offered rate. Random bundles disagree about most images, so the
thresholds are ones that no figure can exceed.
"""

import time
from functools import partial
from typing import NamedTuple

from benchmarks.phases import Phase, add_p99_ratios, alternate, phase_table
from benchmarks.report import Report, Target
from benchmarks.server import Server

CANDIDATE = 2
PLAN = {
    "version": CANDIDATE,
    "mode": "shadow",
    "percent": 100,
    "max_disagreement": 1,
    "max_confidence_shift": 1,
    "min_images": 10**6,
}


class Rollout(NamedTuple):
    """Images of one rollout that were compared, and that were not."""

    n_compared: int
    n_dropped: int


def shadow_for(server: Server, domain: str, duration_s: float) -> list[Rollout]:
    """Run one rollout for this long.

    Raises:
        httpx.HTTPStatusError: the server refuses it.
    """
    path = f"/domains/{domain}/rollout"
    server.client.post(path, json=PLAN).raise_for_status()
    time.sleep(duration_s)
    found = server.client.get(path).raise_for_status().json()
    server.client.delete(path).raise_for_status()
    return [Rollout(found["n_compared"], found["n_dropped"])]


def rollout_load(server: Server, report: Report, *, rate_per_s: float, seconds: float) -> None:
    """Alternate phases with and without a rollout and report the latencies."""
    shadow = partial(shadow_for, server, server.domains[0])
    add_rollout_load(report, alternate(server, shadow, rate_per_s=rate_per_s, seconds=seconds))


def add_rollout_load(report: Report, phases: list[Phase[Rollout]]) -> None:
    """Add the numbers of all phases, without and with a rollout in turn, to a report."""
    add_p99_ratios(report, phases, "rollout", Target("<=", 1.2))
    n_bad = sum(not answer.is_good for phase in phases for answer in phase.answers)
    report.add("rollout_failed", n_bad, "requests that failed or were refused", Target("<=", 0))
    found = [rollout for phase in phases for rollout in phase.work]
    n_compared, n_dropped = (sum(column) for column in zip(*found, strict=True))
    share = n_compared / max(1, n_compared + n_dropped)
    report.add("rollout_compared", share, f"share of {n_compared + n_dropped:,} images that were compared")

    def images(work: list[Rollout]) -> str:
        return ", ".join(f"{one.n_compared:,} / {one.n_dropped:,}" for one in work)

    headings = ("rollouts", "images compared / not compared")
    report.tables["Rollout load"] = phase_table(phases, "rollout", headings, images)
