"""Ray Serve's routing by load against routing by domain, and one plain server with the same cores.

The three servers run side by side and get closed loops in turn. With `over` times as many domains as the bank of a
replica has slots, routing by domain needs each stack in one replica only.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.answers import closed_loop_rate
from benchmarks.bundles import domain_name
from benchmarks.load import popular_domains
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Report, Table
from benchmarks.server import N_DRAWS, Server, ServerOptions, backbone_of, fill_store, serving

if TYPE_CHECKING:
    from rich.console import Console

PLAIN: Final = "plain"
WAYS: Final = (PLAIN, "load", "domain")
WARM_UP_S: Final = 3.0


@dataclass(frozen=True)
class RayOptions:
    """What to measure.

    Attributes:
        backbone, device, dtype, extra: see `ServerOptions`.
        replicas: on Ray, with the machine's cores shared among them.
        slots: of the prompt bank of each replica.
        over: domains, in multiples of the slots.
        alpha: popularity of the domains, see `popular_domains`.
        clients, side, seconds, rounds: of each closed loop.
    """

    backbone: str = "demo-student"
    device: str = "auto"
    dtype: str = "auto"
    replicas: int = 2
    slots: int = 16
    over: tuple[int, ...] = (1, 2)
    alpha: float = 0.0
    clients: int = 16
    side: int = 64
    seconds: float = 5.0
    rounds: int = 5
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def server(self) -> ServerOptions:
        """The options of all servers."""
        extra = (*self.extra, ("bank_slots", str(self.slots)))
        return ServerOptions(self.backbone, self.device, self.dtype, extra=extra)

    def words(self, way: str) -> tuple[str, ...]:
        """The options of one of the servers."""
        return () if way == PLAIN else ("--ray", "--replicas", str(self.replicas), "--route-by", way)


@dataclass
class Found:
    """Images per second and failed requests of one server with one number of domains, by round."""

    per_s: list[float] = field(default_factory=list)
    n_failed: int = 0


def measure(options: RayOptions, console: Console) -> Report:
    """Start the three servers and measure them in turn.

    Raises:
        BenchError: a server does not start, or answers nothing.
    """
    found = {key: Found() for key in product(options.over, WAYS)}
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        backbone = backbone_of(options.server)
        digests = fill_store(folder / "store", backbone, n_domains=options.slots * max(options.over))
        servers: dict[str, Server] = {}
        for way in WAYS:
            console.print(f"starting the server: {way}")
            started = serving(options.server, folder / "store", digests, photographs, words=options.words(way))
            servers[way] = stack.enter_context(started)
            servers[way].closed(options.clients, WARM_UP_S)
        for number in range(options.rounds):
            console.print(f"round {number + 1} of {options.rounds}")
            for over in options.over:
                for way in WAYS if number % 2 else WAYS[::-1]:
                    measure_one(servers[way], found[over, way], options, over)
    report = Report("ray", asdict(options))
    add_numbers(report, found, options)
    return report


def measure_one(server: Server, found: Found, options: RayOptions, over: int) -> None:
    """One closed loop over `over` times as many domains as slots."""
    drawn = popular_domains(options.slots * over, N_DRAWS, alpha=options.alpha)
    answers = server.closed(options.clients, options.seconds, domains=[domain_name(index) for index in drawn])
    found.per_s.append(closed_loop_rate(answers))
    found.n_failed += sum(not answer.is_good for answer in answers)


def add_numbers(report: Report, found: dict[tuple[int, str], Found], options: RayOptions) -> None:
    """Add ratios within rounds, and a table of rates."""
    for over in options.over:
        plain, load, domain = (found[over, way].per_s for way in WAYS)
        at = f"{over * options.slots} domains in {options.slots} slots"
        report.add(f"domain_by_load_{over}x", ratio(domain, load), f"images/s routed by domain / by load, {at}")
        report.add(f"load_by_plain_{over}x", ratio(load, plain), f"images/s on Ray by load / of one plain server, {at}")
    report.add("failed", sum(one.n_failed for one in found.values()), "requests that failed or were refused")
    rows = []
    for (over, way), one in found.items():
        rate = Spread.of(one.per_s)
        rows.append((over * options.slots, way, f"{rate.value:.1f} ({rate.low:.1f} to {rate.high:.1f})"))
    report.tables["Closed loops"] = Table(("domains", "server", "images/s, median (quartiles)"), rows)
    report.notes.append("All servers and the load generator share one machine; only one server has load at a time.")
