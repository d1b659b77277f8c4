"""Compare two checkouts of this project on one machine: both servers run, and every measurement alternates.

    python -m benchmarks.paired --old ../old --new . --rounds 5 --seconds 8

Uses only `caspl serve` of each checkout's own `.venv` and the HTTP interface, so that the code behind may differ.
The engine is measured through requests of 16 images, where HTTP costs little. ViT-B-16 has random weights.
"""

import json
import math
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.answers import summarize
from benchmarks.bundles import domain_name
from benchmarks.load import arrival_times, send
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Table
from benchmarks.server import FORM, PATIENT, Server, ServerOptions, backbone_of, fill_store, multipart, serving
from benchmarks.swaps import swap_for

N_DOMAINS, N_IMAGES = 64, 16
SWAPS_PER_S = 10.0
SLO_S = {"ViT-B-16": 2.0, "demo-student": 0.1}
CASES = ("ViT-B-16", "demo-student", "start")
Measurement = Callable[[Server], float]
Found = dict[str, dict[str, list[float]]]

console = Console(stderr=True)


def measurements(backbone: str, capacity_per_s: float, seconds: float, folder: Path) -> dict[str, Measurement]:
    """What is measured on both servers; names end with the unit, `/s` is better when higher, `ms` when lower."""
    photographs, domains = write_photographs(folder, side=224), [domain_name(index) for index in range(N_DOMAINS)]
    one = [multipart(photographs, ["images"] * N_IMAGES, folder / "one")]
    groups = [domains[start : start + N_IMAGES] for start in range(0, N_DOMAINS, N_IMAGES)]
    mixed = [multipart(photographs, group, folder / f"mixed-{group[0]}") for group in groups]
    form = {"content_type": FORM, "n_images": N_IMAGES}

    def one_domain(server: Server) -> float:
        return server.closed_rate(4, seconds, domains=domains[:1], bodies=one, **form)

    def many_domains(server: Server) -> float:
        return server.closed_rate(4, seconds, path=PATIENT.replace("/{domain}", ""), bodies=mixed, **form)

    def open_p99_ms(server: Server, fraction: float = 0.7) -> float:
        return summarize(server.open(fraction * capacity_per_s, seconds), duration_s=seconds).p99_ms

    def overload(server: Server) -> float:
        slo_s = SLO_S[backbone]
        due_s = arrival_times(3 * capacity_per_s, seconds).tolist()
        path = f"/classify/{{domain}}?top_k=1&timeout_ms={round(900 * slo_s)}"
        answers = send(server.load(due_s=due_s, n_connections=384, path=path))
        return summarize(answers, duration_s=seconds, slo_s=slo_s).goodput_per_s

    versions: dict[str, count[int]] = defaultdict(lambda: count(2))

    def swaps(server: Server) -> float:
        due_s = arrival_times(0.4 * capacity_per_s, seconds).tolist()
        answers = send(
            server.load(due_s=due_s),
            meanwhile=lambda: swap_for(server, domains[0], versions[server.url], SWAPS_PER_S, seconds),
        )
        return summarize(answers, duration_s=seconds).p99_ms

    found: dict[str, Measurement] = {f"closed loop, {n} clients, images/s": _closed(n, seconds) for n in (1, 4, 16)}
    found |= {
        "open loop at 0.7, p50 ms": lambda server: (
            summarize(server.open(0.7 * capacity_per_s, seconds), duration_s=seconds).p50_ms
        ),
        "open loop at 0.7, p99 ms": open_p99_ms,
        "overload at 3x, in time/s": overload,
    }
    if backbone == "ViT-B-16":
        return {"engine, one domain, images/s": one_domain, "engine, 64 domains, images/s": many_domains} | found
    return found | {f"swap load, {SWAPS_PER_S:g} new versions/s, p99 ms": swaps}


def _closed(n_clients: int, seconds: float) -> Measurement:
    return lambda server: server.closed_rate(n_clients, seconds)


def compare(backbone: str, checkouts: Mapping[str, Path], rounds: int, seconds: float) -> Found:
    """Values of every measurement by checkout."""
    options = ServerOptions(backbone=backbone)
    found: Found = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="paired-") as name, ExitStack() as stack:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=224)
        n_versions = 2 if backbone == "ViT-B-16" else 2 + math.ceil(rounds * (seconds + 2) * SWAPS_PER_S)
        digests = fill_store(folder / "store", backbone_of(options), n_domains=N_DOMAINS, n_versions=n_versions)
        servers: dict[str, Server] = {}
        for checkout, path in checkouts.items():
            store = shutil.copytree(folder / "store", folder / checkout)
            caspl = path.resolve() / ".venv/bin/caspl"
            servers[checkout] = stack.enter_context(serving(options, store, digests, photographs, caspl=caspl))
        capacity_per_s = statistics.mean(server.closed_rate(16, seconds) for server in servers.values())
        ways = measurements(backbone, capacity_per_s, seconds, folder)
        for index in range(rounds):
            console.print(f"{backbone}: round {index + 1} of {rounds}")
            for what, way in ways.items():
                for checkout in list(servers)[:: 1 if index % 2 else -1]:
                    found[f"{backbone}: {what}"][checkout].append(way(servers[checkout]))
    return found


def starts(checkouts: Mapping[str, Path], rounds: int, n_domains: int = 1000) -> Found:
    """Seconds from starting a process to ready, with 1,000 domains of ViT-B-16."""
    options = ServerOptions()
    found: Found = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="paired-") as name:
        folder = Path(name)
        digests = fill_store(folder / "store", backbone_of(options), n_domains=n_domains)
        for index in range(rounds):
            console.print(f"start: round {index + 1} of {rounds}")
            for checkout in list(checkouts)[:: 1 if index % 2 else -1]:
                caspl = checkouts[checkout].resolve() / ".venv/bin/caspl"
                with serving(options, folder / "store", digests, [], caspl=caspl) as server:
                    found[f"start with {n_domains:,} domains, s"][checkout].append(server.ready_after_s)
    return found


def table(found: Found) -> Table:
    """Medians and the ratio of every measurement."""
    rows = []
    for what, values in found.items():
        spread: Spread = ratio(values["new"], values["old"])
        medians = [f"{statistics.median(values[checkout]):.4g}" for checkout in ("old", "new")]
        better = "higher" if what.endswith("/s") else "lower"
        rows.append((what, better, *medians, f"**{spread.value:.3f}**", f"{spread.low:.3f} .. {spread.high:.3f}"))
    return Table(("measurement", "better", "old", "new", "new / old", "quartiles of the rounds"), rows)


def main(
    old: Annotated[Path, typer.Option(help="checkout with a .venv")],
    new: Annotated[Path, typer.Option(help="checkout with a .venv")],
    rounds: Annotated[int, typer.Option(min=1, help="of every measurement")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="of every measurement")] = 8.0,
    only: Annotated[str, typer.Option(help=f"some of {', '.join(CASES)}, separated by commas")] = ",".join(CASES),
    out: Annotated[Path, typer.Option(help="JSON file")] = Path("build/bench/paired.json"),
) -> None:
    """Alternate measurements between two checkouts and print the ratios."""
    checkouts = {"old": old, "new": new}
    found: Found = {}
    for case in only.split(","):
        found |= starts(checkouts, min(rounds, 3)) if case == "start" else compare(case, checkouts, rounds, seconds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(found).markdown() + "\n")
    Console().print(Markdown(table(found).markdown()))


if __name__ == "__main__":
    typer.run(main)
