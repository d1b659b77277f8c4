"""Phases of load without and with other work (swaps or fits), in turn, at one offered rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from benchmarks.answers import Answer, percentile_ms
from benchmarks.load import arrival_times, send
from benchmarks.ratios import ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server

N_PAIRS = 3
LOAD = 0.4
"""Offered rate as a share of the capacity."""

T = TypeVar("T")


@dataclass(frozen=True)
class Phase(Generic[T]):
    """A phase of load, and the work done meanwhile, such as its swaps; none in a phase without."""

    answers: list[Answer]
    work: list[T] = field(default_factory=list)

    @property
    def latencies_s(self) -> list[float]:
        """Latencies of its answered requests."""
        return [answer.latency_s for answer in self.answers if answer.is_good]

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latencies."""
        return percentile_ms(self.latencies_s, 99)


def alternate(server: Server, work: Callable[[float], list[T]], *, rate_per_s: float, seconds: float) -> list[Phase[T]]:
    """Send load in phases, every second one with `work`, which gets the seconds of a phase."""
    phase_s = seconds / (2 * N_PAIRS)
    phases = []
    for index in range(2 * N_PAIRS):
        load = server.load(due_s=arrival_times(rate_per_s, phase_s, seed=index), n_connections=256)
        done: list[T] = []

        def meanwhile(done: list[T] = done) -> None:
            done += work(phase_s)

        answers = send(load, meanwhile=meanwhile) if index % 2 else send(load)
        phases.append(Phase(answers, done))
    return phases


def add_p99_ratios(report: Report, phases: Sequence[Phase[T]], name: str, target: Target) -> None:
    """Add the p99 latency of phases with work / without it to a report; `name` is `swap` or `fit`."""
    without, during = phases[::2], phases[1::2]
    pooled = [percentile_ms([one for phase in some for one in phase.latencies_s], 99) for some in (during, without)]
    report.add(f"{name}_p99_ratio", pooled[0] / pooled[1], f"p99 latency with {name}s / without", target)
    by_pair = ratio([phase.p99_ms for phase in during], [phase.p99_ms for phase in without])
    report.add(f"{name}_p99_ratio_by_pair", by_pair, f"the same, each phase with {name}s / the one before it")


def phase_table(
    phases: Sequence[Phase[T]], name: str, headings: tuple[str, str], slowest: Callable[[list[T]], str]
) -> Table:
    """A row per phase; the last two columns are the amount of work and its slowest part."""
    rows = [
        (
            f"{name}s" if phase.work else f"no {name}s",
            len(phase.answers),
            f"{percentile_ms(phase.latencies_s, 50):.1f}",
            f"{phase.p99_ms:.1f}",
            len(phase.work),
            slowest(phase.work) if phase.work else "",
        )
        for phase in phases
    ]
    return Table(("phase", "requests", "p50 ms", "p99 ms", *headings), rows)
