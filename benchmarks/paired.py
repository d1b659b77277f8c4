"""Compare two checkouts of this project on one machine: both servers run, and every measurement alternates.

    python -m benchmarks.paired --old ../old --new . --rounds 5 --seconds 8

Uses only `caspl serve` of each checkout's own `.venv` and the HTTP interface, so that the code behind may differ.
The engine is measured through requests of 16 images, where HTTP costs little. ViT-B-16 has random weights. HTTP is
measured as by `caspl bench http`, with a simulated device in place of the model.
"""

import json
import math
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.answers import summarize
from benchmarks.bundles import domain_name
from benchmarks.fixed_device import BACKBONE, launcher
from benchmarks.http_capacity import LIMITS, PRESIZED, HttpOptions, run_loop, write_bodies
from benchmarks.load import arrival_times, send
from benchmarks.phases import LOAD
from benchmarks.photographs import write_photographs
from benchmarks.ratios import ratio
from benchmarks.report import Table
from benchmarks.serve import CLIENTS, OPEN
from benchmarks.server import FORM, PATIENT, Server, ServerOptions, backbone_of, fill_store, multipart, serving
from benchmarks.swaps import PER_S, swap_for

N_DOMAINS, N_IMAGES, N_CLIENTS, N_STARTS, STARTED_DOMAINS = 64, 16, 4, 3, 1000
SLO_S = 2.0
Measurement = Callable[[Server], Mapping[str, float]]
Found = dict[str, dict[str, list[float]]]
"""Values by measurement and checkout. Names end with their unit; rates are better if higher, times if lower."""

console = Console(stderr=True)


def measurements(backbone: str, capacity_per_s: float, seconds: float, folder: Path) -> Iterator[Measurement]:
    """All measurements of a running server."""
    domains = [domain_name(index) for index in range(N_DOMAINS)]
    versions: dict[str, count[int]] = defaultdict(lambda: count(2))

    def engine(server: Server) -> dict[str, float]:
        one = [multipart(server.photographs, ["images"] * N_IMAGES, folder / "one")]
        groups = [domains[start : start + N_IMAGES] for start in range(0, N_DOMAINS, N_IMAGES)]
        mixed = [multipart(server.photographs, group, folder / group[0]) for group in groups]
        long_s = max(seconds, 3 * N_CLIENTS * N_IMAGES / capacity_per_s)  # several requests per client
        rate = partial(server.closed_rate, N_CLIENTS, long_s, content_type=FORM, n_images=N_IMAGES)
        found = {"engine, one domain, images/s": rate(domains=domains[:1], bodies=one)}
        return found | {"engine, 64 domains, images/s": rate(path=PATIENT.replace("/{domain}", ""), bodies=mixed)}

    def closed(n_clients: int) -> Measurement:
        return lambda server: {f"closed loop, {n_clients} clients, images/s": server.closed_rate(n_clients, seconds)}

    def open_loop(server: Server) -> dict[str, float]:
        found = summarize(server.open(OPEN * capacity_per_s, seconds), duration_s=seconds)
        return {f"open loop at {OPEN}, p50 ms": found.p50_ms, f"open loop at {OPEN}, p99 ms": found.p99_ms}

    def overload(server: Server) -> dict[str, float]:
        path = f"/classify/{{domain}}?top_k=1&timeout_ms={900 * SLO_S:.0f}"
        load = server.load(due_s=arrival_times(3 * capacity_per_s, seconds), n_connections=384, path=path)
        return {"overload at 3x, in time/s": summarize(send(load), duration_s=seconds, slo_s=SLO_S).goodput_per_s}

    def swaps(server: Server) -> dict[str, float]:
        swap = partial(swap_for, server, domains[0], versions[server.url], seconds)
        answers = send(server.load(due_s=arrival_times(LOAD * capacity_per_s, seconds)), meanwhile=swap)
        return {"ten new versions/s, p99 ms": summarize(answers, duration_s=seconds).p99_ms}

    yield from map(closed, CLIENTS)
    yield open_loop
    # Three times the demo model's capacity is more than a load generator on the same cores can send.
    yield from (engine, overload) if backbone == "ViT-B-16" else (swaps,)


def compare(options: ServerOptions, checkouts: Mapping[str, Path], rounds: int, seconds: float) -> Found:
    """Run both servers side by side and alternate all measurements."""
    backbone = options.backbone
    found: Found = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="paired-") as name, ExitStack() as stack:
        folder = Path(name)
        photographs = write_photographs(folder, side=224 if backbone == "ViT-B-16" else 64)
        n_versions = 2 if backbone == "ViT-B-16" else 2 + math.ceil(rounds * (seconds + 2) * PER_S)
        digests = fill_store(folder / "store", backbone_of(options), n_domains=N_DOMAINS, n_versions=n_versions)
        servers: dict[str, Server] = {}
        for checkout, caspl in checkouts.items():
            store = shutil.copytree(folder / "store", folder / checkout)
            servers[checkout] = stack.enter_context(serving(options, store, digests, photographs, caspl=caspl))
        capacity_per_s = statistics.mean(server.closed_rate(16, seconds) for server in servers.values())
        for index in range(rounds):
            console.print(f"{backbone}: round {index + 1} of {rounds}")
            for measure in measurements(backbone, capacity_per_s, seconds, folder):
                for checkout in sorted(servers, reverse=bool(index % 2)):
                    for measurement, value in measure(servers[checkout]).items():
                        found[f"{backbone}: {measurement}"][checkout].append(value)
    return found


def starts(options: ServerOptions, checkouts: Mapping[str, Path]) -> Found:
    """Seconds from starting a process to ready."""
    found: Found = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="paired-") as name:
        store = Path(name)
        digests = fill_store(store, backbone_of(options), n_domains=STARTED_DOMAINS)
        for index in range(N_STARTS):
            console.print(f"start: round {index + 1} of {N_STARTS}")
            for checkout in sorted(checkouts, reverse=bool(index % 2)):
                with serving(options, store, digests, [], caspl=checkouts[checkout]) as server:
                    found[f"start with {STARTED_DOMAINS:,} domains, s"][checkout].append(server.ready_after_s)
    return found


def http(checkouts: Mapping[str, Path], rounds: int, seconds: float) -> Found:
    """HTTP, decoding and queue in one process, with the simulated device."""
    found: Found = defaultdict(lambda: defaultdict(list))
    options = ServerOptions(BACKBONE, "cpu", "float32", extra=LIMITS)
    with tempfile.TemporaryDirectory(prefix="paired-") as name, ExitStack() as stack:
        folder = Path(name)
        bodies = write_bodies(HttpOptions(images=(1,), sides=(PRESIZED,)), folder)
        digests = fill_store(folder / "store", backbone_of(options), n_domains=2)
        servers: dict[str, Server] = {}
        for checkout, caspl in checkouts.items():
            store = shutil.copytree(folder / "store", folder / checkout / "store")
            command = launcher(folder / checkout, str(caspl.with_name("python")))
            servers[checkout] = stack.enter_context(serving(options, store, digests, [], caspl=command))
        for index in range(rounds + 1):
            console.print(f"HTTP: round {index} of {rounds}")
            for checkout in sorted(servers, reverse=bool(index % 2)):
                sample = run_loop(servers[checkout], PRESIZED, 1, bodies[PRESIZED, 1], math.ceil(seconds))
                if index:  # the first round warms up
                    found["HTTP: one JPEG per request, requests/s"][checkout].append(sample.per_s)
                    found["HTTP: one JPEG per request, CPU ms"][checkout].append(sample.server_ms)
    return found


def table(found: Found) -> Table:
    """Medians and the ratio of every measurement."""
    rows = []
    for measurement, values in found.items():
        spread = ratio(values["new"], values["old"])
        medians = [f"{statistics.median(values[checkout]):.4g}" for checkout in ("old", "new")]
        better = "higher" if measurement.endswith("/s") else "lower"
        rows.append(
            (measurement, better, *medians, f"**{spread.value:.3f}**", f"{spread.low:.3f} .. {spread.high:.3f}")
        )
    return Table(("measurement", "better", "old", "new", "new / old", "quartiles of the rounds"), rows)


def main(
    old: Annotated[Path, typer.Option(help="checkout with a .venv")],
    new: Annotated[Path, typer.Option(help="checkout with a .venv")],
    rounds: Annotated[int, typer.Option(min=1, help="rounds of every measurement")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="length of each measurement")] = 8.0,
    dtype: Annotated[str, typer.Option(help="dtype of ViT-B-16; auto may differ between two starts")] = "bfloat16",
    only: Annotated[str, typer.Option(help="cases, separated by commas")] = "ViT-B-16,demo-student,start,http",
    out: Annotated[Path, typer.Option(help="JSON file; the table goes beside it")] = Path("build/bench/paired.json"),
) -> None:
    """Alternate measurements between two checkouts and print the ratios."""
    checkouts = {name: path.resolve() / ".venv/bin/caspl" for name, path in (("old", old), ("new", new))}
    found: Found = {}
    for case in only.split(","):
        options = ServerOptions("demo-student") if case == "demo-student" else ServerOptions(dtype=dtype)
        if case == "http":
            found |= http(checkouts, rounds, seconds)
        else:
            found |= starts(options, checkouts) if case == "start" else compare(options, checkouts, rounds, seconds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(found).markdown() + "\n")
    Console().print(Markdown(table(found).markdown()))


if __name__ == "__main__":
    typer.run(main)
