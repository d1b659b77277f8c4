"""Overload: several times the capacity is offered for a while, then half of it.

A server under overload should go on answering what it can, refuse the rest at once and say when to come back, and be
itself again as soon as the load falls. Last come clients that do not heed when to come back.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.answers import Answer, percentile_ms, recovery_s, summarize
from benchmarks.arrivals import arrival_times
from benchmarks.interleaved import Ratio
from benchmarks.load import send
from benchmarks.report import Bar, Measured, Report, Table
from benchmarks.stage import CEILING_CLIENTS, Stage

AFTER = 0.5
"""Of the ceiling, once the load has fallen."""
AFTER_S = 6.0
IN_TIME = 0.9
"""Of the objective: the deadline that requests name, so that an answer in time has a tenth left for its way."""
CONNECTIONS = 384
IMPATIENT_CLIENTS = 3 * CEILING_CLIENTS


def overload(on: Stage, report: Report) -> None:
    """Offer too much, then little, and write down what came back."""
    options = on.options
    path = f"/classify/{{domain}}?top_k=1&timeout_ms={round(IN_TIME * options.slo_ms)}"
    capacity_per_s = on.closed_rate(CEILING_CLIENTS, options.seconds / 4, path=path)
    rate = options.overload * capacity_per_s
    on.console.print(f"{rate:.1f}/s for {options.seconds:g} s, {options.overload:g} times what it can, then half of it")
    crowd = arrival_times(rate, options.seconds, seed=options.seed)
    after = options.seconds + arrival_times(AFTER * capacity_per_s, AFTER_S, seed=options.seed + 1)
    before = on.service.counters()
    due = np.concatenate([crowd, after])
    answers = send(on.plan(due, path=path, n_connections=CONNECTIONS))
    counters = on.service.counters()
    fell_at_s = answers[0].due_s - due[0] + options.seconds
    # Others use the machine too: its capacity is measured again when all is over.
    capacity_after_per_s = on.closed_rate(CEILING_CLIENTS, options.seconds / 4, path=path)
    peak_per_s = (capacity_per_s + capacity_after_per_s) / 2
    during = [answer for answer in answers if answer.due_s < fell_at_s]
    found = summarize(during, duration_s=options.seconds, slo_s=options.slo_s)
    # What is answered later had the service to itself.
    goodput_per_s = in_time_per_s(during, until_s=fell_at_s, duration_s=options.seconds, slo_s=options.slo_s)
    refused = [answer for answer in during if answer.is_refused]
    late_s = [answer.sent_s - answer.due_s for answer in during]
    report.numbers += [
        Measured(
            "overload_goodput_vs_peak",
            Ratio.of([goodput_per_s / peak_per_s]),
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
            f"of {len(refused)} refusals",
            Bar("<=", 0),
        ),
        Measured(
            "overload_failed",
            Ratio.of([found.n_failed]),
            f"of {len(during)} requests, without an answer, a refusal or word that their time was up",
        ),
        Measured(
            "overload_recovery_s",
            Ratio.of([recovery_s(answers, fell_at_s=fell_at_s, slo_s=options.slo_s)]),
            "after the load fell, until every request is answered within its time",
            Bar("<=", 1.0),
        ),
    ]
    on.console.print(f"{IMPATIENT_CLIENTS} clients that ask again the moment they are refused")
    report.numbers.append(impatience(on, path, peak_per_s))
    n_batches = counters["caspl_batch_rows_count"] - before["caspl_batch_rows_count"]
    report.tables["Overload"] = Table(
        ("what", "value"),
        [
            ("offered, requests/s", f"{rate:.1f}"),
            ("capacity before / after, images/s", f"{capacity_per_s:.1f} / {capacity_after_per_s:.1f}"),
            ("answered in time while the load lasted, requests/s", f"{goodput_per_s:.1f}"),
            ("refused / taken but expired / failed", f"{found.n_refused} / {found.n_expired} / {found.n_failed}"),
            ("p50 / p99 of answers, ms", " / ".join(f"{found.percentiles_ms[key]:.1f}" for key in ("p50", "p99"))),
            ("batches", round(n_batches)),
            ("requests sent later than due, p99, ms", f"{percentile_ms(late_s, 99):.1f}"),
        ],
    )
    report.samples["overload"] = {
        "due_s": [round(answer.due_s - answers[0].due_s, 4) for answer in answers],
        "latency_ms": [round(answer.latency_s * 1000, 1) for answer in answers],
        "status": [answer.status for answer in answers],
    }


def impatience(on: Stage, path: str, peak_per_s: float) -> Measured:
    """What clients are answered in time who all ask again the moment they are refused."""
    duration_s = on.options.seconds / 4
    answers = on.closed(IMPATIENT_CLIENTS, duration_s, path=path)
    end_s = min(answer.sent_s for answer in answers) + duration_s
    found_per_s = in_time_per_s(answers, until_s=end_s, duration_s=duration_s, slo_s=on.options.slo_s)
    n_refused = sum(answer.is_refused for answer in answers)
    return Measured(
        "impatient_goodput_vs_peak",
        Ratio.of([found_per_s / peak_per_s]),
        f"images/s within {on.options.slo_ms:g} ms with {IMPATIENT_CLIENTS} clients that ask again the moment they are "
        f"refused, {n_refused / duration_s:.0f} times a second / images/s at capacity",
    )


def in_time_per_s(answers: Sequence[Answer], *, until_s: float, duration_s: float, slo_s: float) -> float:
    """Images per second that were answered within the objective by the end of a stretch of time."""
    done = [answer for answer in answers if answer.done_s <= until_s]
    return summarize(done, duration_s=duration_s, slo_s=slo_s).goodput_per_s
