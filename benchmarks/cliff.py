"""`caspl bench cliff`: more domains than the prompt bank has slots.

Throughput and latency of a closed loop over a working set of 1, 2, 4 and 16 times the slots, with uniform and Zipf
popularity, without and with updates (uploads of new versions that go live). All points take turns. Cold latency: one
client whose requests cycle over twice as many domains as there are slots, which always misses an LRU cache, in
turn with requests to one other domain. Each turn continues the cycle of the turn before.
"""

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, product
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.answers import closed_loop_rate
from benchmarks.bundles import BundleShape, domain_name, random_bundle
from benchmarks.load import popular_domains, send
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import N_DRAWS, Server, ServerOptions, backbone_of, fill_store, serving
from prompted_clip.backbone import Backbone

N_ROUNDS = 3
WARM_UP_S = 2.0
LOADS = "caspl_bank_loads_total"


@dataclass(frozen=True, kw_only=True)
class CliffOptions(ServerOptions):
    """Options of the command."""

    slots: int = 16
    over: tuple[int, ...] = (1, 2, 4, 16)
    alphas: tuple[float, ...] = (0.0, 1.0)
    updates_per_s: tuple[float, ...] = (0.0, 5.0)
    clients: int = 16
    side: int = 224
    seconds: float = 10.0


@dataclass
class Point:
    """A working set of `over` times the slots, its popularity, the rate of updates, and what each round found."""

    over: int
    alpha: float
    updates_per_s: float
    per_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    loads_per_image: list[float] = field(default_factory=list)
    n_updates: int = 0
    n_failed: int = 0


def measure(options: CliffOptions, console: Console) -> Report:
    """Start the server with few slots and measure all points in turn."""
    few_slots = replace(options, extra=(*options.extra, ("bank_slots", str(options.slots))))
    n_domains = max(options.slots * max(options.over), 2 * options.slots + 1)
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        backbone = backbone_of(options)
        console.print(f"making {n_domains} domains for {options.backbone}")
        digests = fill_store(folder / "store", backbone, n_domains=n_domains)
        console.print(f"starting caspl serve with {options.slots} slots")
        with serving(few_slots, folder / "store", digests, photographs) as server:
            info = server.client.get("/info").raise_for_status().json().get("backbone", {})
            server.closed(options.clients, WARM_UP_S)
            points = [Point(*one) for one in product(options.over, options.alphas, options.updates_per_s)]
            versions = count(2)
            for number in range(N_ROUNDS):
                console.print(f"round {number + 1} of {N_ROUNDS}")
                for point in points:
                    measure_point(server, point, options, backbone, versions)
            latencies_s = cold_latencies(server, options.slots, options.seconds / 2)
    used = {one: info[one] for one in ("dtype", "device") if one in info}
    report = Report("cliff", asdict(options) | used, device=used.get("device", "cpu"))
    add_points(report, points, options.slots)
    add_cold(report, latencies_s)
    return report


def measure_point(
    server: Server, point: Point, options: CliffOptions, backbone: Backbone, versions: Iterator[int]
) -> None:
    """One turn of a point."""
    n_domains = point.over * options.slots
    drawn = popular_domains(n_domains, N_DRAWS, alpha=point.alpha)
    load = server.load(
        domains=[domain_name(index) for index in drawn],
        n_connections=options.clients,
        duration_s=options.seconds / N_ROUNDS,
    )
    before = server.metrics()[LOADS]

    def update() -> None:
        point.n_updates += send_updates(server, point, n_domains, options.seconds / N_ROUNDS, backbone, versions)

    answers = send(load, meanwhile=update)
    good = [answer for answer in answers if answer.is_good]
    point.per_s.append(closed_loop_rate(answers))
    point.latencies_ms += [round(1000 * answer.latency_s, 1) for answer in good]
    point.loads_per_image.append((server.metrics()[LOADS] - before) / max(1, len(good)))
    point.n_failed += len(answers) - len(good)


def send_updates(
    server: Server, point: Point, n_domains: int, seconds: float, backbone: Backbone, versions: Iterator[int]
) -> int:
    """Upload new versions of the domains in turn at a steady rate, or as fast as the server confirms them."""
    began_s, n_sent = time.monotonic(), 0
    while point.updates_per_s and (due_s := n_sent / point.updates_per_s) < seconds:
        time.sleep(max(0.0, began_s + due_s - time.monotonic()))
        if time.monotonic() - began_s >= seconds:
            break
        domain, version = domain_name(n_sent % n_domains), next(versions)
        bundle = random_bundle(backbone, domain, version, BundleShape())
        path = f"/domains/{domain}/versions?activate=true"
        server.client.post(path, content=bundle).raise_for_status()
        n_sent += 1
    return n_sent


def cold_latencies(server: Server, slots: int, seconds: float) -> dict[str, list[list[float]]]:
    """Latencies of one client by round: of requests to one domain, and of requests that each load a domain."""
    cycle = deque(domain_name(index) for index in range(1, 2 * slots + 1))
    found: dict[str, list[list[float]]] = {"resident": [], "cold": [], "loads": []}
    server.closed(1, 0.0, domains=list(cycle), due_s=[0.0] * len(cycle))  # the bank has the end of the cycle
    for _ in range(N_ROUNDS):
        for name, domains in (("resident", [domain_name(0)]), ("cold", list(cycle))):
            before = server.metrics()[LOADS]
            answers = server.closed(1, seconds / N_ROUNDS, domains=domains)
            good = [one for one in answers if one.is_good]
            found[name].append([answer.latency_s for answer in good])
            if name == "cold":
                cycle.rotate(-len(answers))
                found["loads"].append([(server.metrics()[LOADS] - before) / max(1, len(good))])
    return found


def add_points(report: Report, points: Sequence[Point], slots: int) -> None:
    """Add the points, and their throughput relative to a working set that fits."""
    fits = {(point.alpha, point.updates_per_s): point.per_s for point in points if point.over == 1}
    rows = []
    for point in points:
        base = fits.get((point.alpha, point.updates_per_s))
        relative = ratio(point.per_s, base) if base else None
        rate = Spread.of(point.per_s)
        p50_ms, p99_ms = (np.percentile(point.latencies_ms, percent) for percent in (50, 99))
        rows.append(
            (
                f"{point.over} x ({point.over * slots})",
                f"{point.alpha:g}",
                f"{point.updates_per_s:g}",
                f"{rate.value:.1f} ({rate.low:.1f} .. {rate.high:.1f})",
                f"{relative.value:.2f}" if relative else "",
                f"{p50_ms:.0f} / {p99_ms:.0f}",
                f"{statistics.mean(point.loads_per_image):.2f}",
                point.n_updates,
                point.n_failed,
            )
        )
        if relative and point.over != 1 and not point.updates_per_s:
            name = f"over_{point.over}x_zipf_{point.alpha:g}".replace(".", "_")
            meaning = f"images/s with {point.over * slots} domains over {slots} slots / with {slots} domains"
            report.add(name, relative, f"{meaning}, Zipf exponent {point.alpha:g}", Target(">=", 0.9))
    report.tables["Working set over slots"] = Table(
        (
            "domains over slots",
            "Zipf exponent",
            "updates/s offered",
            "images/s (quartiles)",
            "against 1 x",
            "p50 / p99, ms",
            "loads per image",
            "updates done",
            "failed",
        ),
        rows,
    )
    report.samples["points"] = [asdict(point) for point in points]


def add_cold(report: Report, latencies_s: dict[str, list[list[float]]]) -> None:
    """Add the latency of requests to resident and to cold domains."""
    for name in ("resident", "cold"):
        pooled_ms = [1000 * one_s for turn in latencies_s[name] for one_s in turn]
        report.add(f"{name}_latency_ms", Spread.of(pooled_ms), f"one client, {name} domains, ms")
    medians = {name: [statistics.median(turn) for turn in latencies_s[name]] for name in ("resident", "cold")}
    added_ms = [1000 * (cold - warm) for cold, warm in zip(medians["cold"], medians["resident"], strict=True)]
    report.add("cold_added_ms", Spread.of(added_ms), "the difference of the medians, by turn, ms")
    loads = [one for turn in latencies_s["loads"] for one in turn]
    report.add("cold_loads_per_request", Spread.of(loads), "copies to the bank per request to cold domains")
