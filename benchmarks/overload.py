"""Overload: several times the capacity is offered for a while, then half of it.

A server under overload should go on answering what it can, refuse the rest at once and say when to come back, and be
itself again as soon as the load falls. Last come clients that do not heed when to come back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.answers import Answer, images_between, percentile_ms, recovery_s, summarize
from benchmarks.arrivals import arrival_times
from benchmarks.interleaved import Ratio
from benchmarks.load import send
from benchmarks.report import Bar, Measured, Report, Table
from benchmarks.stage import PATH, Stage

ROUND_S = 60.0
"""About how long one crowd lasts."""
AFTER = 0.5
"""Of the ceiling, once the load has fallen."""
AFTER_S = 6.0
IN_TIME = 0.9
"""Of the objective: the deadline that requests name, so that an answer in time has a tenth left for its way."""
CONNECTIONS, IMPATIENT = 12, 3
"""Times the clients that find the ceiling."""


@dataclass(frozen=True)
class Crowd:
    """What came of one crowd.

    Attributes:
        during: what was due while the load lasted.
        rest: what was due after it had fallen.
        fell_at_s: reading of the monotonic clock when it did.
        goodput_per_s: images, answered in time, that the service worked on while the load lasted.
    """

    during: list[Answer]
    rest: list[Answer]
    fell_at_s: float
    goodput_per_s: float


def overload(on: Stage, report: Report) -> None:
    """Offer too much, then little, in turn with the capacity, and write down what came back."""
    options = on.options
    path = f"{PATH}&timeout_ms={round(IN_TIME * options.slo_ms)}"
    n_rounds = max(1, round(options.seconds / ROUND_S))
    round_s = options.seconds / n_rounds
    before = on.service.counters()
    # Others use the machine too, and it has quicker and slower minutes: the capacity is measured on both sides.
    capacities_per_s = [on.closed_rate(options.n_ceiling_clients, round_s / 4)]
    crowds = []
    for index in range(n_rounds):
        rate = options.overload * capacities_per_s[-1]
        on.console.print(f"{rate:.1f}/s for {round_s:g} s, {options.overload:g} times what it can, then half of it")
        crowds.append(crowd(on, path, rate, round_s, seed=options.seed + 2 * index))
        capacities_per_s.append(on.closed_rate(options.n_ceiling_clients, round_s / 4))
    counters = on.service.counters()
    peaks_per_s = [(one + other) / 2 for one, other in pairwise(capacities_per_s)]
    during = [answer for one in crowds for answer in one.during]
    found = summarize(during, duration_s=options.seconds, slo_s=options.slo_s)
    recovery = max(recovery_s(one.rest, fell_at_s=one.fell_at_s, slo_s=options.slo_s) for one in crowds)
    report.numbers += [
        Measured(
            "overload_goodput_vs_peak",
            Ratio.of([one.goodput_per_s / peak_per_s for one, peak_per_s in zip(crowds, peaks_per_s, strict=True)]),
            f"images/s within {options.slo_ms:g} ms while {options.overload:g} times the capacity is offered / "
            "images/s at capacity, before and after",
            Bar(">=", 0.9),
        ),
        Measured(
            "overload_refusal_p99_ms",
            Ratio.of([found.refusal_p99_ms]),
            "from sending to the refusal, 99 of 100, ms",
            Bar("<=", 50),
        ),
        Measured(
            "overload_refusals_without_retry_after",
            Ratio.of([found.n_refused_without_retry_after]),
            f"of {found.n_refused} refusals",
            Bar("<=", 0),
        ),
        Measured(
            "overload_failed",
            Ratio.of([found.n_failed]),
            f"of {len(during)} requests, without an answer, a refusal or word that their time was up",
        ),
        Measured(
            "overload_recovery_s",
            Ratio.of([recovery]),
            "after the load fell, until every request is answered within its time; the longest",
            Bar("<=", 1.0),
        ),
    ]
    on.console.print(f"{on.connections(IMPATIENT)} clients that ask again the moment they are refused")
    report.numbers.append(impatience(on, path, round_s / 4, capacities_per_s[-1]))
    n_batches = counters["caspl_batch_rows_count"] - before["caspl_batch_rows_count"]
    late_s = [answer.sent_s - answer.due_s for answer in during]
    report.tables["Overload"] = Table(
        ("what", "value"),
        [
            ("offered, requests/s", _joined(options.overload * one for one in capacities_per_s[:-1])),
            ("capacity before, between and after, images/s", _joined(capacities_per_s)),
            ("answered in time while the load lasted, images/s", _joined(one.goodput_per_s for one in crowds)),
            ("refused / taken but expired / failed", f"{found.n_refused} / {found.n_expired} / {found.n_failed}"),
            ("p50 / p99 of answers, ms", _joined(found.percentiles_ms[key] for key in ("p50", "p99"))),
            ("batches, those at capacity included", round(n_batches)),
            ("requests sent later than due, p99, ms", f"{percentile_ms(late_s, 99):.1f}"),
        ],
    )
    report.samples["overload"] = [
        {
            "due_s": [round(answer.due_s - one.during[0].due_s, 4) for answer in one.during + one.rest],
            "latency_ms": [round(answer.latency_s * 1000, 1) for answer in one.during + one.rest],
            "status": [answer.status for answer in one.during + one.rest],
        }
        for one in crowds
    ]


def crowd(on: Stage, path: str, rate_per_s: float, duration_s: float, *, seed: int) -> Crowd:
    """Offer a rate that is too high for a while, then half of what the service can."""
    many = arrival_times(rate_per_s, duration_s, seed=seed)
    few = duration_s + arrival_times(AFTER * rate_per_s / on.options.overload, AFTER_S, seed=seed + 1)
    due_s = np.concatenate([many, few])
    answers = send(on.plan(due_s, path=path, n_connections=on.connections(CONNECTIONS)))
    fell_at_s = answers[0].due_s - due_s[0] + duration_s
    during = [answer for answer in answers if answer.due_s < fell_at_s]
    goodput_per_s = in_time_per_s(during, until_s=fell_at_s, duration_s=duration_s, slo_s=on.options.slo_s)
    return Crowd(during, [answer for answer in answers if answer.due_s >= fell_at_s], fell_at_s, goodput_per_s)


def impatience(on: Stage, path: str, duration_s: float, peak_per_s: float) -> Measured:
    """What clients are answered in time who all ask again the moment they are refused."""
    n_clients = on.connections(IMPATIENT)
    answers = on.closed(n_clients, duration_s, path=path)
    end_s = min(answer.sent_s for answer in answers) + duration_s
    found_per_s = in_time_per_s(answers, until_s=end_s, duration_s=duration_s, slo_s=on.options.slo_s)
    n_refused = sum(answer.is_refused for answer in answers)
    return Measured(
        "impatient_goodput_vs_peak",
        Ratio.of([found_per_s / peak_per_s]),
        f"images/s within {on.options.slo_ms:g} ms with {n_clients} clients that ask again the moment they are "
        f"refused, {n_refused / duration_s:.0f} times a second / images/s at capacity",
    )


def in_time_per_s(answers: Sequence[Answer], *, until_s: float, duration_s: float, slo_s: float) -> float:
    """Images per second of a stretch of time that were answered within the objective."""
    in_time = [answer for answer in answers if answer.is_good and answer.latency_s <= slo_s]
    return images_between(in_time, until_s - duration_s, until_s) / duration_s


def _joined(numbers: Iterable[float]) -> str:
    return " / ".join(f"{number:.1f}" for number in numbers)
