"""A swap storm: the hottest domain changes its version many times a second while requests run.

Phases with and without alternate, at one offered rate. Every answer is looked at: does it name a version that was live
at some moment of the request, with that version's digest and labels?
"""

import math
import time
from dataclasses import dataclass

from benchmarks.answers import Answer, Change, is_stale, is_torn, percentile_ms
from benchmarks.arrivals import arrival_times
from benchmarks.interleaved import Ratio
from benchmarks.load import send
from benchmarks.report import Bar, Measured, Report, Table
from benchmarks.running import Service
from benchmarks.stage import N_VERSIONS, Stage

N_PHASES = 6
LOAD = 0.4
"""Of the ceiling, offered in every phase."""
START_S = 1.0
"""The generator takes a moment to start; the storm goes on for as much longer."""


@dataclass(frozen=True)
class Phase:
    """One stretch of load, with the changes that were made in it."""

    is_storm: bool
    answers: list[Answer]
    changes: list[Change]

    @property
    def p99_ms(self) -> float:
        """Of its answered requests."""
        return percentile_ms([answer.latency_s for answer in self.answers if answer.is_good], 99)


def swap_on(service: Service, domain: str, per_s: float, duration_s: float, first: int) -> list[Change]:
    """Activate the domain's versions in turn, at a steady rate or as fast as they are confirmed.

    Args:
        service: that serves it.
        domain: whose versions 1 to 4 are in the store.
        per_s: activations per second.
        duration_s: for how long.
        first: number of activations that were made before.
    """
    began_s = time.monotonic()
    changes: list[Change] = []
    while (due_s := len(changes) / per_s) < duration_s:
        time.sleep(max(0.0, began_s + due_s - time.monotonic()))
        changes.append(service.activate(domain, (first + len(changes) + 1) % N_VERSIONS + 1))
        if time.monotonic() - began_s > duration_s:
            break
    return changes


def storm(on: Stage, report: Report, ceiling_per_s: float) -> None:
    """Run the phases and write down what they say."""
    options = on.options
    hottest = on.service.domains[0]
    rate, phase_s = LOAD * ceiling_per_s, options.seconds / N_PHASES
    history = [Change(hottest, 1, -math.inf, -math.inf)]
    phases: list[Phase] = []
    for index in range(N_PHASES):
        is_storm = index % 2 == 1
        on.console.print(f"{rate:.1f}/s for {phase_s:g} s, {f'{options.swap_storm:g} swaps/s' if is_storm else 'calm'}")
        made: list[Change] = []

        def swap(made: list[Change] = made, n_before: int = len(history)) -> None:
            made += swap_on(on.service, hottest, options.swap_storm, phase_s + START_S, n_before)

        plan = on.plan(arrival_times(rate, phase_s, cv=options.cv, seed=options.seed + index))
        answers = send(plan, meanwhile=swap) if is_storm else send(plan)
        history += made
        phases.append(Phase(is_storm, answers, made))
    _report(on, report, phases, history)


def _report(on: Stage, report: Report, phases: list[Phase], history: list[Change]) -> None:
    everything = [answer for phase in phases for answer in phase.answers]
    good = [answer for answer in everything if answer.is_good]
    pairs = [stormy.p99_ms / calm.p99_ms for calm, stormy in zip(phases[::2], phases[1::2], strict=True)]
    pooled = {
        is_storm: percentile_ms(
            [one.latency_s for phase in phases if phase.is_storm == is_storm for one in phase.answers if one.is_good],
            99,
        )
        for is_storm in (False, True)
    }
    counts = {
        "storm_failed": (len(everything) - len(good), "requests without an answer, refusals included"),
        "storm_stale": (
            sum(is_stale(one, history) for one in good),
            "answers by a version not live at any moment of the request",
        ),
        "storm_torn": (sum(is_torn(one, on.service.digests) for one in good), "answers put together from two versions"),
    }
    storm_s = sum(phase.changes[-1].done_s - phase.changes[0].asked_s for phase in phases if phase.changes)
    report.numbers += [
        Measured(
            "storm_p99_ratio",
            Ratio.of([pooled[True] / pooled[False]]),
            f"p99 with {on.options.swap_storm:g} activations/s on the hottest domain / without, phases pooled",
            Bar("<=", 1.2),
        ),
        Measured(
            "storm_p99_ratio_by_pairs", Ratio.of(pairs), "the same, each stormy phase against the calm one before it"
        ),
        *(Measured(name, Ratio.of([n]), text, Bar("<=", 0)) for name, (n, text) in counts.items()),
        Measured(
            "storm_activations_per_s",
            Ratio.of([(len(history) - 1) / storm_s]),
            "activations really confirmed per second",
        ),
    ]
    report.tables["Swap storm"] = Table(
        ("phase", "requests", "refused, expired", "p50 ms", "p99 ms", "activations", "slowest activation ms"),
        [
            (
                "storm" if phase.is_storm else "calm",
                len(phase.answers),
                sum(one.is_refused or one.is_expired for one in phase.answers),
                f"{percentile_ms([one.latency_s for one in phase.answers if one.is_good], 50):.1f}",
                f"{phase.p99_ms:.1f}",
                len(phase.changes),
                f"{max((one.done_s - one.asked_s for one in phase.changes), default=0) * 1000:.1f}",
            )
            for phase in phases
        ],
    )
    report.samples["storm"] = [
        {
            "is_storm": phase.is_storm,
            "latencies_ms": [round(one.latency_s * 1000, 1) for one in phase.answers if one.is_good],
            "activation_ms": [round((one.done_s - one.asked_s) * 1000, 1) for one in phase.changes],
        }
        for phase in phases
    ]
