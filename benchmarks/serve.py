"""`caspl bench serve`: a real server process under load over HTTP.

The server, the load generator and this process share the machine's cores.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.answers import percentile_ms, summarize
from benchmarks.attacks import attack_server
from benchmarks.errors import BenchError
from benchmarks.fits import add_domain, fit_load
from benchmarks.overload import overload
from benchmarks.phases import LOAD
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target
from benchmarks.rollouts import CANDIDATE, rollout_load
from benchmarks.server import Server, ServerOptions, backbone_of, fill_store, serving
from benchmarks.swaps import n_versions, swap_load

PARTS = ("start", "idle", "closed", "open", "overload", "swaps", "fits", "rollouts", "attacks")
OPEN = 0.7
"""Offered rate of the open loop as a share of the capacity."""
OVERLOAD = 3.0
"""Offered load under overload, in times the capacity."""
GOODPUT, DEMO_GOODPUT = 0.9, 0.8
"""Targets; an answer of the demo models takes so little CPU time that refusals take a larger share of it."""
CLIENTS, CAPACITY_CLIENTS = (1, 4, 16), 32
N_ROUNDS = 3
WARM_UP_S = 2.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServerOptions):
    """Options of the command."""

    n_domains: int = 64
    side: int = 224
    seconds: float = 20.0
    slo_ms: float = 2000.0
    only: tuple[str, ...] = ("start", "idle", "closed", "open", "overload")
    label: str = ""


def measure(options: ServeOptions, console: Console) -> Report:
    """Start the server and run the chosen parts.

    Raises:
        BenchError: an unknown part, or the server does not become ready.
    """
    if unknown := set(options.only) - set(PARTS):
        msg = f"unknown parts: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}"
        raise BenchError(msg)
    if "attacks" in options.only and options.n_domains < 2:
        raise BenchError("the attacks need a domain of their own: --domains 2 or more")
    report = Report("-".join(part for part in ("serve", options.label) if part), asdict(options), device=options.device)
    n_stored = CANDIDATE if "rollouts" in options.only else 1
    n_stored = n_versions(options.seconds) if "swaps" in options.only else n_stored
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        console.print(f"making {options.n_domains} domains for {options.backbone}")
        store = folder / "store"
        backbone = backbone_of(options)
        digests = fill_store(store, backbone, n_domains=options.n_domains, n_versions=n_stored)
        if "fits" in options.only:
            add_domain(store, backbone)
        console.print("starting caspl serve")
        with serving(options, store, digests, photographs) as server:
            measure_parts(server, options, report, console)
    return report


def measure_without_capacity(server: Server, options: ServeOptions, report: Report, console: Console) -> None:
    """Run the chosen parts that need no rate of requests."""
    if "start" in options.only:
        meaning = f"from the start of the process to ready, {options.n_domains:,} domains, s"
        report.add("ready_after_s", server.ready_after_s, meaning)
    if "idle" in options.only:
        console.print("one request at a time")
        idle(server, options, report)
    if "closed" in options.only:
        console.print("closed loops")
        closed(server, options, report)
    if "attacks" in options.only:
        console.print("attacks")
        attack_server(server, report, seconds=options.seconds)


def measure_parts(server: Server, options: ServeOptions, report: Report, console: Console) -> None:
    """Run the chosen parts on a running server."""
    backbone = server.client.get("/info").raise_for_status().json().get("backbone", {})
    report.settings |= {name: backbone[name] for name in ("dtype", "device") if name in backbone}
    report.device = str(report.settings["device"]).replace("auto", "cpu")
    server.closed(max(CLIENTS), WARM_UP_S)
    measure_without_capacity(server, options, report, console)
    if not {"open", "swaps", "fits", "rollouts", "overload"} & set(options.only):
        return
    console.print(f"capacity: closed loop, {CAPACITY_CLIENTS} clients")
    capacity_per_s = server.closed_rate(CAPACITY_CLIENTS, options.seconds / 2)
    report.add("capacity_per_s", capacity_per_s, f"images/s, closed loop, {CAPACITY_CLIENTS} clients")
    if "open" in options.only:
        console.print("open loop")
        open_loop(server, options, report, capacity_per_s)
    if "overload" in options.only:
        console.print("overload")
        overload(
            server,
            report,
            times=OVERLOAD,
            n_clients=CAPACITY_CLIENTS,
            seconds=options.seconds,
            slo_s=options.slo_ms / 1000,
            target=DEMO_GOODPUT if options.backbone.startswith("demo-") else GOODPUT,
        )
    if "swaps" in options.only:
        console.print("swap load")
        swap_load(server, report, rate_per_s=LOAD * capacity_per_s, seconds=options.seconds)
    if "fits" in options.only:
        console.print("fit load")
        fit_load(server, report, rate_per_s=LOAD * capacity_per_s, seconds=options.seconds)
    if "rollouts" in options.only:
        console.print("rollout load")
        rollout_load(server, report, rate_per_s=LOAD * capacity_per_s, seconds=options.seconds)


def idle(server: Server, options: ServeOptions, report: Report) -> None:
    """Latency of one client, and how much of it is neither decoding nor the device."""
    answers = [one for one in server.closed(1, options.seconds / 2) if one.is_good]
    totals_s = [answer.done_s - answer.sent_s for answer in answers]
    rest_ms = [
        1000 * total_s - answer.server_ms["decode"] - answer.server_ms["device"]
        for total_s, answer in zip(totals_s, answers, strict=True)
    ]
    report.add("idle_latency_ms", Spread.of([1000 * total_s for total_s in totals_s]), "one request at a time, ms")
    target = Target("<=", 3.0) if options.backbone.startswith("demo") else None
    meaning = "the same without decoding and the device: HTTP, queue, threads, the client; ms"
    report.add("idle_overhead_ms", Spread.of(rest_ms), meaning, target)


def closed(server: Server, options: ServeOptions, report: Report) -> None:
    """Closed loops of a few clients, in turn."""
    rates: dict[int, list[float]] = {n_clients: [] for n_clients in CLIENTS}
    for _ in range(N_ROUNDS):
        for n_clients, found in rates.items():
            found.append(server.closed_rate(n_clients, options.seconds / N_ROUNDS))
    for n_clients, found in rates.items():
        report.add(f"closed_{n_clients}_per_s", Spread.of(found), f"images/s, closed loop, clients: {n_clients}")
    report.samples["closed_per_s"] = rates


def open_loop(server: Server, options: ServeOptions, report: Report, capacity_per_s: float) -> None:
    """Poisson arrivals at a share of the capacity."""
    rate_per_s = OPEN * capacity_per_s
    before = server.metrics()
    answers = server.open(rate_per_s, options.seconds)
    after = server.metrics()
    found = summarize(answers, duration_s=options.seconds)
    at = f"latency at {OPEN:g} of the capacity ({rate_per_s:.1f}/s), ms"
    report.add("open_p50_ms", found.p50_ms, f"median {at}")
    report.add("open_p99_ms", found.p99_ms, f"p99 {at}")
    bad = found.n_failed + found.n_refused + found.n_expired
    report.add("open_failed", bad, f"of {found.n_requests} requests, refusals included", Target("<=", 0))
    n_batches = after["caspl_batch_rows_count"] - before["caspl_batch_rows_count"]
    rows_per_batch = (after["caspl_batch_rows_sum"] - before["caspl_batch_rows_sum"]) / max(1, n_batches)
    late_ms = percentile_ms([answer.sent_s - answer.due_s for answer in answers], 99)
    report.tables["Open loop"] = Table(
        ("p50 ms", "p90 ms", "p99 ms", "images per batch", "requests sent late, p99, ms"),
        [
            (
                *(f"{ms:.1f}" for ms in (found.p50_ms, found.p90_ms, found.p99_ms)),
                f"{rows_per_batch:.2f}",
                f"{late_ms:.1f}",
            )
        ],
    )
    report.samples["open_latency_ms"] = [round(1000 * answer.latency_s, 1) for answer in answers if answer.is_good]
