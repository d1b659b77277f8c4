"""`caspl bench serve`: a real service process under open-loop load, seen from outside.

First a closed loop finds the ceiling; then requests are due at fractions of it, whether or not the service keeps up.
The engine's own rate, decoding and the bare forward are measured in this process, in turn with the service.
"""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from rich.console import Console

from benchmarks.answers import Answer, summarize
from benchmarks.errors import BenchError
from benchmarks.interleaved import Ratio
from benchmarks.overhead import against_engine, idle
from benchmarks.overload import overload
from benchmarks.pipeline import pipeline
from benchmarks.report import Bar, Measured, Plot, Report, Table
from benchmarks.running import per_batch
from benchmarks.stage import PARTS, ServeOptions, Stage, stage
from benchmarks.storm import storm

FRACTIONS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.1)
CEILING_S = 10.0


def measure(options: ServeOptions, console: Console) -> Report:
    """Start the service and run what was asked for.

    Raises:
        BenchError: there is no such part, nothing to send, or somebody else's service would be changed.
        DemoError: the service does not start or stop as it should.
    """
    if unknown := set(options.only) - set(PARTS):
        msg = f"--only names no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}."
        raise BenchError(msg)
    if options.url and options.swap_storm:
        msg = "A swap storm is for a service of the benchmark's own: leave --url or --swap-storm out."
        raise BenchError(msg)
    with stage(options, console) as on:
        report = Report("-".join(part for part in ("serve", options.label) if part), asdict(options))
        if on.model is not None:
            report.device = str(on.model.backbone.device)
            report.settings |= {
                "dtype": str(on.model.backbone.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
            }
            start = f"from starting the process until it is ready, with {options.n_domains} live domains, s"
            report.numbers.append(Measured("ready_after_s", Ratio.of([on.service.ready_after_s]), start))
            if options.wants("idle"):
                idle(on, on.model, report)
            if options.wants("engine") and on.store is not None:
                against_engine(on, on.model, on.store, report)
            if options.wants("pipeline"):
                pipeline(on, on.model, report)
        console.print(f"closed loop, {options.n_ceiling_clients} clients")
        ceiling = on.closed_rate(options.n_ceiling_clients, min(CEILING_S, options.seconds))
        text = f"images/s of {options.n_ceiling_clients} clients in a closed loop"
        report.numbers.append(Measured("ceiling_per_s", Ratio.of([ceiling]), text))
        if options.wants("sweep"):
            sweep(on, report, ceiling)
        if options.swap_storm and options.wants("storm"):
            storm(on, report, ceiling)
        if options.overload and options.wants("overload"):
            overload(on, report)
    return report


def sweep(on: Stage, report: Report, ceiling: float) -> None:
    """Offer fractions of the ceiling, images per second, or the rates that were asked for."""
    options = on.options
    rates = options.rates or tuple(fraction * ceiling for fraction in FRACTIONS)
    rows, n_torn, n_failed = [], 0, 0
    curves: dict[str, list[float]] = {}
    kept = {}
    for index, rate in enumerate(rates):
        on.console.print(f"open loop, {rate:.1f}/s for {options.seconds:g} s")
        before = on.service.counters()
        answers = on.open(rate, options.seconds, seed=options.seed + index)
        batches = per_batch(before, on.service.counters())
        found = summarize(answers, duration_s=options.seconds, slo_s=options.slo_s)
        n_torn += on.torn(answers) if on.service.digests else 0
        n_failed += found.n_failed
        kept[f"{rate:.2f}"] = asdict(found) | batches | {"latencies_ms": latencies_ms(answers)}
        for name, value in found.percentiles_ms.items():
            curves.setdefault(name, []).append(value)
        rows.append(
            (
                f"{rate:.1f} ({rate / ceiling:.0%})",
                *(f"{value:.1f}" for value in found.percentiles_ms.values()),
                f"{found.goodput_per_s:.1f}",
                found.n_refused,
                found.n_expired,
                found.n_failed,
                f"{batches['batch_rows']:.1f} / {batches['batch_domains']:.1f}",
            )
        )
    headings = ("rate /s (of ceiling)", "p50 ms", "p90", "p99", "p99.9", f"within {options.slo_ms:g} ms, /s")
    report.tables["Open loop, latency from when each request was due"] = Table(
        (*headings, "refused", "expired", "failed", "rows / domains per batch"), rows
    )
    report.plots["Latency over offered rate"] = Plot(
        "requests/s", "ms", {name: (list(rates), values) for name, values in curves.items()}, is_log=True
    )
    report.samples["sweep"] = kept
    failed = "requests of the sweep without an answer, a refusal or word that their time was up"
    report.numbers.append(Measured("sweep_failed", Ratio.of([n_failed]), failed, Bar("<=", 0)))
    if on.service.digests:
        torn = "answers of the sweep put together from two versions"
        report.numbers.append(Measured("sweep_torn", Ratio.of([n_torn]), torn, Bar("<=", 0)))


def latencies_ms(answers: Sequence[Answer]) -> list[float]:
    """Of the answered requests, in the order in which they were due; a tenth of a millisecond is enough."""
    return [round(answer.latency_s * 1000, 1) for answer in answers if answer.is_good]
