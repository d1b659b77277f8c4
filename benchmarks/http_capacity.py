"""`caspl bench http`: capacity of HTTP and decoding, with a simulated device that takes a fixed time and no CPU.

Client and server share the cores. The table therefore has the server's CPU time per request beside the requests per
second, and the gain from web processes compares requests per second and core that the client does not use.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.errors import BenchError
from benchmarks.fixed_device import BACKBONE, BATCH_ROWS, BATCH_S, launcher
from benchmarks.machine import machine
from benchmarks.photographs import write_photographs
from benchmarks.profiles import Profile, profile
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import FORM, PATIENT, Server, ServerOptions, backbone_of, fill_store, multipart, serving
from benchmarks.wrk import Loop, require_success, require_wrk, run

PRESIZED = 224
"""Side of the backbone's input in pixels; no resizing."""
IN_FLIGHT = {PRESIZED: BATCH_ROWS, 1024: 32}
"""Images in flight over all clients, by side in pixels; at most a batch, so that no request is refused."""
LIMITS = (
    ("max_batch_rows", str(BATCH_ROWS)),
    ("max_queued_rows", "1024"),
    ("max_decoding_images", "1024"),
    ("max_open_requests", "1024"),
)
MIN_REQUESTS_PER_S = 1200
MIN_GAIN_OF_TWO = 1.7
PROFILED = 12
"""Rows of a profile's table."""

Case = tuple[int, int, int]
"""Side in pixels, images per request, web processes."""


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Options of the command."""

    workers: tuple[int, ...] = (0, 1, 2)
    images: tuple[int, ...] = (1, 8, 16)
    sides: tuple[int, ...] = tuple(IN_FLIGHT)
    preprocess: str = "exact"
    rounds: int = 5
    seconds: int = 5
    profile_s: int = 10
    label: str = ""


@dataclass(frozen=True)
class Sample:
    """One closed loop, and the CPU time of all processes of the server."""

    loop: Loop
    server_cpu_s: float

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.loop.n_requests / self.loop.seconds

    @property
    def server_ms(self) -> float:
        """CPU time of the server per request."""
        return 1000 * self.server_cpu_s / self.loop.n_requests

    @property
    def client_ms(self) -> float:
        """CPU time of the client per request."""
        return 1000 * self.loop.client_cpu_s / self.loop.n_requests

    @property
    def per_free_core(self) -> float:
        """Requests per second and core that the client does not use."""
        n_cores: int = machine()["n_cores"]
        return self.per_s / (n_cores - self.loop.client_cpu_s / self.loop.seconds)


def measure(options: HttpOptions, console: Console) -> Report:
    """Run one server per number of web processes and measure them in turn.

    Raises:
        BenchError: wrk or py-spy is missing, a server does not become ready, or a request fails.
    """
    require_wrk()
    if unknown := set(options.sides) - set(IN_FLIGHT):
        raise BenchError(f"unknown sides: {sorted(unknown)}; choose from {', '.join(map(str, IN_FLIGHT))}")
    report = Report("-".join(part for part in ("http", options.label) if part), asdict(options))
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bodies = write_bodies(options, folder)
        servers = {}
        for n_workers in options.workers:
            console.print(f"starting caspl serve with {n_workers} web processes")
            limits = (*LIMITS, ("preprocess", options.preprocess))
            server_options = ServerOptions(BACKBONE, "cpu", "float32", web_workers=n_workers, extra=limits)
            store = folder / f"store-{n_workers}"
            digests = fill_store(store, backbone_of(server_options), n_domains=2)
            running = serving(server_options, store, digests, [], caspl=launcher(folder))
            servers[n_workers] = stack.enter_context(running)
        samples = measure_in_turn(options, servers, bodies, console)
        add_numbers(report, options, samples)
        if options.profile_s:
            console.print("py-spy")
            server, body = servers[options.workers[0]], bodies[options.sides[0], options.images[0]]
            with profile(server.pid, options.profile_s, folder) as found:
                sample = run_loop(server, options.sides[0], options.images[0], body, options.profile_s)
            add_profile(report, options, found, sample.loop.n_requests)
    return report


def write_bodies(options: HttpOptions, folder: Path) -> dict[tuple[int, int], tuple[Path, str]]:
    """File and content type of the request body by side and number of images."""
    bodies = {}
    for side in options.sides:
        photographs = write_photographs(folder / f"photographs-{side}", side=side)
        for n_images in options.images:
            path = folder / f"body-{side}-{n_images}"
            if n_images == 1:
                path.write_bytes(photographs[0].read_bytes())
            else:
                multipart(photographs, ["images"] * n_images, path)
            bodies[side, n_images] = path, "image/jpeg" if n_images == 1 else FORM
    return bodies


def measure_in_turn(
    options: HttpOptions,
    servers: Mapping[int, Server],
    bodies: Mapping[tuple[int, int], tuple[Path, str]],
    console: Console,
) -> dict[Case, list[Sample]]:
    """Measure every case on every server, in rounds."""
    samples: dict[Case, list[Sample]] = {}
    for index in range(options.rounds):
        console.print(f"round {index + 1} of {options.rounds}")
        for (side, n_images), body in bodies.items():
            for n_workers in sorted(servers, reverse=bool(index % 2)):
                sample = run_loop(servers[n_workers], side, n_images, body, options.seconds)
                samples.setdefault((side, n_images, n_workers), []).append(sample)
    return samples


def run_loop(server: Server, side: int, n_images: int, body: tuple[Path, str], seconds: int) -> Sample:
    """One closed loop on a server."""
    path, (file, content_type) = PATIENT.format(domain=server.domains[0]), body
    before_s = cpu_s(server.pid)
    n_clients = max(1, IN_FLIGHT[side] // n_images)
    loop = run(server.url, [path], [file], file.parent, n_clients=n_clients, seconds=seconds, content_type=content_type)
    return Sample(require_success(loop), cpu_s(server.pid) - before_s)


def cpu_s(pid: int) -> float:
    """CPU time of a process and its children so far, user and system."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    total_s: float = sum(one.user + one.system for one in times)
    return total_s


def add_numbers(report: Report, options: HttpOptions, samples: Mapping[Case, list[Sample]]) -> None:
    """Add all cases, and the two numbers that have targets."""
    rows = []
    for (side, n_images, n_workers), found in sorted(samples.items()):
        per_s, server_ms, client_ms = (
            Spread.of([getattr(one, name) for one in found]) for name in ("per_s", "server_ms", "client_ms")
        )
        rows.append(
            (
                side,
                n_images,
                n_workers,
                f"{per_s.value:.0f} ({per_s.low:.0f} .. {per_s.high:.0f})",
                f"{per_s.value * n_images:.0f}",
                f"{server_ms.value:.2f} ({server_ms.low:.2f} .. {server_ms.high:.2f})",
                f"{server_ms.value / n_images:.2f}",
                f"{1000 / server_ms.value * n_images:.0f}",
                f"{client_ms.value:.2f}",
            )
        )
        report.samples[f"{side}_{n_images}_{n_workers}"] = [asdict(one) for one in found]
    headings = ("side, px", "images per request", "web processes", "requests/s", "images/s",
                "server CPU ms per request", "per image", "images per CPU second",
                "client CPU ms per request")  # fmt: skip
    report.tables["HTTP, decoding and queue"] = Table(headings, rows)
    if one := samples.get((PRESIZED, 1, 0)):
        target = Target(">=", MIN_REQUESTS_PER_S)
        meaning = f"requests/s with one JPEG of {PRESIZED} pixels each, one process"
        report.add("requests_per_s", Spread.of([sample.per_s for sample in one]), meaning, target)
        meaning = "CPU time of the server per such request, ms"
        report.add("request_cpu_ms", Spread.of([sample.server_ms for sample in one]), meaning)
        if two := samples.get((PRESIZED, 1, 2)):
            gain = ratio([sample.per_free_core for sample in two], [sample.per_free_core for sample in one])
            meaning = "requests/s per core that the client does not use, two web processes / one process"
            report.add("two_web_processes", gain, meaning, Target(">=", MIN_GAIN_OF_TWO))
    report.notes.append(
        f"Simulated device: {1000 * BATCH_S:.0f} ms per batch of up to {BATCH_ROWS} images, no CPU. "
        f"Server and client share the cores. preprocess={options.preprocess}; requests are not logged."
    )


def add_profile(report: Report, options: HttpOptions, found: Profile, n_requests: int) -> None:
    """Add a profile's tables, in microseconds per request."""
    case = f"{options.images[0]} image(s) of {options.sides[0]} px per request, {options.workers[0]} web processes"
    total_s = sum(found.by_part.values())
    for title, taken_s in (("part", found.by_part), ("function", found.by_function)):
        longest = sorted(taken_s.items(), key=lambda item: -item[1])[:PROFILED]
        rows = [(name, f"{1e6 * one_s / n_requests:.0f}", f"{100 * one_s / total_s:.1f} %") for name, one_s in longest]
        report.tables[f"CPU time by {title} ({case})"] = Table((title, "us per request", "share"), rows)
    report.notes.append(
        f"The tables by part and function divide each thread's CPU time among its py-spy samples, {found.n_samples} in "
        "all. py-spy itself slows the server down."
    )
