"""Overload: a load of several times the capacity for a while, then half of it.

The server should answer what it can, refuse the rest at once with `Retry-After`, and recover as soon as the load falls.
The load is wrk's, since a client in Python takes about as much CPU per request as a refusal. The number and the pauses
of its connections aim at `times` the capacity; the rate that was reached is reported. wrk has no latency per status, so
every success counts as in time: the requests' timeout is shorter than the objective. Beside it, probes, at most 20
requests per second from `benchmarks.load`, give latencies by status; they count in all rates.
"""

import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.answers import Answer, recovery_s, summarize
from benchmarks.load import arrival_times, send
from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target
from benchmarks.server import PATIENT, Server
from benchmarks.wrk import Loop, require_success, require_wrk, run

N_ROUNDS = 3
AFTER, AFTER_S = 0.5, 5.0
"""Share of the capacity that is offered after the overload, and for how long."""
DEADLINE = 0.9
"""Deadline in the requests, as a share of the objective; the rest is for the network."""
MAX_CONNECTIONS = 1000
"""Of the overload; each sends a request, waits for its answer, and pauses."""
PAUSE_S = 0.5
"""Mean pause of a connection. It is far below the 5 s of keep-alive: wrk counts a closed connection as failed."""
PROBES_PER_S = 20.0


@dataclass(frozen=True)
class Round:
    """One overload.

    Attributes:
        capacity_per_s: measured before and after.
        load: requests of the overload.
        probes: answers to the few requests beside it.
        after: answers to requests that were due after it.
        fell_at_s: when the load fell.
    """

    capacity_per_s: float
    load: Loop
    probes: list[Answer]
    after: list[Answer]
    fell_at_s: float

    @property
    def goodput_per_s(self) -> float:
        """Images answered with success."""
        return (self.load.n_good + sum(probe.is_good for probe in self.probes)) / self.load.seconds

    @property
    def offered_per_s(self) -> float:
        """Requests that were sent, one image each."""
        return (self.load.n_requests + len(self.probes)) / self.load.seconds


def overload(
    server: Server, report: Report, *, times: float, n_clients: int, seconds: float, slo_s: float, target: float
) -> None:
    """Alternate overloads with measurements of the capacity.

    Args:
        server: under test.
        report: gets the numbers.
        times: the overload, in capacities.
        n_clients: of the measurement of the capacity.
        seconds: of all overloads together.
        slo_s: objective for the latency.
        target: for the goodput.

    Raises:
        BenchError: wrk is missing or failed, or the capacity could not be measured.
    """
    require_wrk()
    round_s = max(2, round(seconds / N_ROUNDS))
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)

        def capacity_per_s() -> float:
            paths = [PATIENT.format(domain=domain) for domain in server.load().domains]
            bodies = server.photographs
            loop = run(server.url, paths, bodies, folder, n_clients=n_clients, seconds=max(2, round_s // 2))
            return require_success(loop).n_good / loop.seconds

        capacities_per_s, rounds = [capacity_per_s()], []
        for index in range(N_ROUNDS):
            found = overload_once(server, folder, times, capacities_per_s[-1], round_s, slo_s, seed=2 * index)
            capacities_per_s.append(capacity_per_s())
            rounds.append(Round(sum(capacities_per_s[-2:]) / 2, *found))
    add_overload(report, rounds, times=times, slo_s=slo_s, target=target)


def overload_once(
    server: Server, folder: Path, times: float, capacity_per_s: float, duration_s: int, slo_s: float, *, seed: int
) -> tuple[Loop, list[Answer], list[Answer], float]:
    """The overload, answers beside and after it, and when it ended."""
    path = f"/classify/{{domain}}?top_k=1&timeout_ms={round(1000 * DEADLINE * slo_s)}"
    probes_per_s = min(PROBES_PER_S, capacity_per_s)
    n_clients, think_s = connections(times * capacity_per_s - probes_per_s, mean_wait_s=slo_s / times)
    probes = server.load(due_s=arrival_times(probes_per_s, duration_s, seed=seed), path=path)
    with ThreadPoolExecutor(max_workers=1) as thread:
        probing = thread.submit(send, probes)
        paths = [path.format(domain=domain) for domain in probes.domains]
        load = run(
            server.url,
            paths,
            server.photographs,
            folder,
            n_clients=n_clients,
            seconds=duration_s,
            think_s=think_s,
        )
        fell_at_s = time.monotonic()
        after = send(server.load(due_s=arrival_times(AFTER * capacity_per_s, AFTER_S, seed=seed + 1), path=path))
        return load, [one for one in probing.result() if one.due_s < fell_at_s], after, fell_at_s


def connections(rate_per_s: float, *, mean_wait_s: float) -> tuple[int, float]:
    """The number of connections and their mean pause in seconds for a rate of requests.

    Args:
        rate_per_s: requests per second, if their mean wait is `mean_wait_s`. If the number of connections is limited to
            `MAX_CONNECTIONS`, the rate is reached if every answer comes at once.
        mean_wait_s: mean time of a request, accepted or refused.
    """
    wanted = math.ceil(rate_per_s * (PAUSE_S + mean_wait_s))
    return (wanted, PAUSE_S) if wanted <= MAX_CONNECTIONS else (MAX_CONNECTIONS, MAX_CONNECTIONS / rate_per_s)


def add_overload(report: Report, rounds: list[Round], *, times: float, slo_s: float, target: float) -> None:
    """Add the numbers of all rounds to a report."""
    probes, loads = [answer for one in rounds for answer in one.probes], [one.load for one in rounds]
    found = summarize(probes, duration_s=sum(load.seconds for load in loads), slo_s=slo_s)
    n_refused, n_expired = sum(load.n_refused for load in loads), sum(load.n_expired for load in loads)
    n_requests = sum(load.n_requests for load in loads)
    n_failed = n_requests - n_refused - n_expired - sum(load.n_good for load in loads)
    n_failed += sum(load.n_errors for load in loads) + found.n_failed
    n_refused, n_expired = n_refused + found.n_refused, n_expired + found.n_expired
    report.add(
        "overload_goodput",
        Spread.of([one.goodput_per_s / one.capacity_per_s for one in rounds]),
        f"images/s with a timeout of {1000 * DEADLINE * slo_s:g} ms under overload / images/s at capacity",
        Target(">=", target),
    )
    report.add(
        "overload_offered",
        Spread.of([one.offered_per_s / one.capacity_per_s for one in rounds]),
        f"requests/s of the overload / images/s at capacity; aim {times:g}",
    )
    report.add("overload_refusal_p99_ms", found.refusal_p99_ms, "p99 time to a refusal, ms", Target("<=", 50))
    without = found.n_refused_without_retry_after
    report.add("overload_no_retry_after", without, f"of {found.n_refused} refused probes", Target("<=", 0))
    report.add("overload_failed", n_failed, f"of {n_requests + len(probes)} requests: connection or server errors")
    recovery = max(recovery_s(one.after, fell_at_s=one.fell_at_s, slo_s=slo_s) for one in rounds)
    report.add("overload_recovery_s", recovery, "after the load fell until all answers are in time, s", Target("<=", 1))
    rows = [
        ("capacity, images/s", " / ".join(f"{one.capacity_per_s:.1f}" for one in rounds)),
        ("offered, images/s", " / ".join(f"{one.offered_per_s:.1f}" for one in rounds)),
        ("answered, images/s", " / ".join(f"{one.goodput_per_s:.1f}" for one in rounds)),
        ("refused / expired / failed", f"{n_refused} / {n_expired} / {n_failed}"),
        ("p50 / p99 of answered probes, ms", f"{found.p50_ms:.0f} / {found.p99_ms:.0f}"),
        ("CPU of the client, cores", f"{sum(o.client_cpu_s for o in loads) / sum(o.seconds for o in loads):.2f}"),
    ]
    report.tables["Overload"] = Table(("measurement", "value"), rows)
