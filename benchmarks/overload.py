"""Overload: several times the capacity is offered for a while, then half of it.

The server should answer what it can, refuse the rest at once with `Retry-After`, and recover as soon as the load falls.
"""

from dataclasses import dataclass

from benchmarks.answers import Answer, percentile_ms, recovery_s, summarize
from benchmarks.load import arrival_times, send
from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server

N_ROUNDS = 3
AFTER, AFTER_S = 0.5, 5.0
"""Share of the capacity that is offered after the overload, and for how long."""
DEADLINE = 0.9
"""Deadline in the requests, as a share of the objective; the rest is for the network."""
N_CONNECTIONS = 384


@dataclass(frozen=True)
class Round:
    """One overload.

    Attributes:
        capacity_per_s: measured before and after.
        during: answers to requests that were due during the overload.
        after: answers to requests that were due after it.
        fell_at_s: when the load fell.
        goodput_per_s: images answered within the objective while the overload lasted.
    """

    capacity_per_s: float
    during: list[Answer]
    after: list[Answer]
    fell_at_s: float
    goodput_per_s: float


def overload(server: Server, report: Report, *, times: float, n_clients: int, seconds: float, slo_s: float) -> None:
    """Alternate overloads with measurements of the capacity."""
    round_s = seconds / N_ROUNDS
    capacities_per_s = [server.closed_rate(n_clients, round_s / 2)]
    rounds = []
    for index in range(N_ROUNDS):
        rate_per_s = times * capacities_per_s[-1]
        found = overload_once(server, rate_per_s, AFTER * capacities_per_s[-1], round_s, slo_s, seed=2 * index)
        capacities_per_s.append(server.closed_rate(n_clients, round_s / 2))
        rounds.append(Round(sum(capacities_per_s[-2:]) / 2, *found))
    add_overload(report, rounds, times=times, seconds=seconds, slo_s=slo_s)


def overload_once(
    server: Server, rate_per_s: float, after_per_s: float, duration_s: float, slo_s: float, *, seed: int
) -> tuple[list[Answer], list[Answer], float, float]:
    """Answers during and after one overload, when it ended, and its goodput in images per second."""
    due_s = arrival_times(rate_per_s, duration_s, seed=seed)
    due_s += [duration_s + one_s for one_s in arrival_times(after_per_s, AFTER_S, seed=seed + 1)]
    path = f"/classify/{{domain}}?top_k=1&timeout_ms={round(1000 * DEADLINE * slo_s)}"
    answers = send(server.load(due_s=due_s, n_connections=N_CONNECTIONS, path=path))
    fell_at_s = answers[0].due_s - due_s[0] + duration_s
    during = [answer for answer in answers if answer.due_s < fell_at_s]
    in_time = [one for one in during if one.is_good and one.latency_s <= slo_s and one.done_s <= fell_at_s]
    after = [answer for answer in answers if answer.due_s >= fell_at_s]
    return during, after, fell_at_s, len(in_time) / duration_s


def add_overload(report: Report, rounds: list[Round], *, times: float, seconds: float, slo_s: float) -> None:
    """Add the numbers of all rounds to a report."""
    during = [answer for one in rounds for answer in one.during]
    found = summarize(during, duration_s=seconds, slo_s=slo_s)
    report.add(
        "overload_goodput",
        Spread.of([one.goodput_per_s / one.capacity_per_s for one in rounds]),
        f"images/s within {1000 * slo_s:g} ms at {times:g} times the capacity / images/s at capacity",
        Target(">=", 0.9),
    )
    report.add("overload_refusal_p99_ms", found.refusal_p99_ms, "p99 time to a refusal, ms", Target("<=", 50))
    without = found.n_refused_without_retry_after
    report.add("overload_no_retry_after", without, f"of {found.n_refused} refusals", Target("<=", 0))
    report.add("overload_failed", found.n_failed, f"of {len(during)} requests: connection or server errors")
    recovery = max(recovery_s(one.after, fell_at_s=one.fell_at_s, slo_s=slo_s) for one in rounds)
    report.add("overload_recovery_s", recovery, "after the load fell until all answers are in time, s", Target("<=", 1))
    late_s = [answer.sent_s - answer.due_s for answer in during]
    rows = [
        ("capacity, images/s", " / ".join(f"{one.capacity_per_s:.1f}" for one in rounds)),
        ("answered in time, images/s", " / ".join(f"{one.goodput_per_s:.1f}" for one in rounds)),
        ("refused / expired / failed", f"{found.n_refused} / {found.n_expired} / {found.n_failed}"),
        ("p50 / p99 of answers, ms", f"{found.p50_ms:.0f} / {found.p99_ms:.0f}"),
        ("requests sent late, p99, ms", f"{percentile_ms(late_s, 99):.1f}"),
    ]
    report.tables[f"Overload at {times:g} times the capacity"] = Table(("measurement", "value"), rows)
