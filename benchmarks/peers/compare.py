"""`caspl bench peers`: other servers with the same photographs, clients, threads and dtype, one at a time.

Ours runs before and after every peer and is idle in between. A peer runs once with one worker that has all threads and
once with a worker per thread; the faster layout counts. Ratios are ours / theirs in images per second.
"""

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.answers import closed_loop_rate, summarize
from benchmarks.errors import BenchError
from benchmarks.load import Load, send
from benchmarks.machine import commit, today
from benchmarks.peers.environments import installed_version, python_of
from benchmarks.peers.servers import DOMAINS, N_DOMAINS, PEERS, Peer, started, write_bodies
from benchmarks.photographs import write_photographs
from benchmarks.ratios import Spread
from benchmarks.report import Report, Table, Target, command_line
from benchmarks.server import Server, ServerOptions, backbone_of, fill_store, free_port, serving

WARM_UP_S = 3.0
Row = dict[str, Any]


@dataclass(frozen=True)
class PeerOptions:
    """Options of the command; `add_to` is a result whose other rows are kept."""

    names: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    backbone: str = "ViT-B-16"
    threads: int = 2
    clients: int = 4
    seconds: float = 15.0
    side: int = 0
    folder: Path = Path("build/peers")
    add_to: Path | None = None

    def layouts(self) -> list[tuple[int, int]]:
        """Workers and threads of each to try."""
        return [(1, self.threads), (self.threads, 1)] if self.threads > 1 else [(1, 1)]


def measure(options: PeerOptions, console: Console) -> Report:
    """Install, start and measure each peer; the result gives the reason if one cannot run.

    Raises:
        BenchError: an unknown peer.
    """
    known = {peer.name: peer for peer in PEERS}
    if unknown := set(options.names) - set(known):
        msg = f"unknown peers: {', '.join(sorted(unknown))}; choose from {', '.join(known)}"
        raise BenchError(msg)
    rows: dict[str, Row] = {}
    if options.add_to is not None and options.add_to.is_file():
        rows = json.loads(options.add_to.read_text())["samples"]["rows"]
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        ours = ServerOptions(backbone=options.backbone, device="cpu", threads=options.threads)
        digests = fill_store(folder / "store", backbone_of(ours), n_domains=N_DOMAINS)
        for dtype in options.dtypes:
            ours = ServerOptions(backbone=options.backbone, device="cpu", dtype=dtype, threads=options.threads)
            with serving(ours, folder / "store", digests, photographs) as server:
                server.closed(options.clients, WARM_UP_S)
                for peer in (known[one] for one in options.names or known):
                    console.print(f"{peer.name}, {dtype}")
                    rows[f"{peer.name}, {dtype}"] = compare(server, peer, dtype, options, console)
    return report_of(options, rows)


def compare(server: Server, peer: Peer, dtype: str, options: PeerOptions, console: Console) -> Row:
    """The rate of a peer in its best layout and ours around it, or the reason why there is none."""
    about = {"peer": peer.name, "dtype": dtype, "note": peer.note, "clients": options.clients}
    about |= {"command": command_line(), "date": today(), "commit": commit()}
    try:
        python = python_of(peer.package, options.folder, console)
        package = f"{peer.package} {installed_version(python, peer.package)}"
        before = server.closed_rate(options.clients, options.seconds / 2)
        tried = {
            f"{workers} x {threads}": run(server, peer, python, dtype, options, workers=workers, threads=threads)
            for workers, threads in options.layouts()
        }
        after = server.closed_rate(options.clients, options.seconds / 2)
    except BenchError as error:
        return about | {"package": peer.package, "failed": str(error)}
    layout = max(tried, key=lambda one: float(tried[one]["per_s"]))
    rates = {one: found["per_s"] for one, found in tried.items()}
    return about | tried[layout] | {"package": package, "layout": layout, "tried": rates, "ours_per_s": [before, after]}


def run(
    server: Server, peer: Peer, python: Path, dtype: str, options: PeerOptions, *, workers: int, threads: int
) -> Row:
    """Rate and latency of a peer in one layout.

    Raises:
        BenchError: it does not run, or answers nothing.
    """
    port = free_port()
    command = [str(python), "-m", f"benchmarks.peers.{peer.module}", "--port", str(port), "--dtype", dtype]
    command += ["--backbone", options.backbone, "--workers", str(workers), "--threads", str(threads)]
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        bodies, content_type = write_bodies(peer, server.photographs, Path(name))
        with started(peer, command, workers=workers, threads=threads, port=port) as url:

            def load(duration_s: float) -> Load:
                return Load(
                    url,
                    bodies,
                    list(DOMAINS),
                    duration_s=duration_s,
                    n_connections=options.clients,
                    path=peer.path,
                    content_type=content_type,
                    headers=dict(peer.headers),
                )

            send(load(WARM_UP_S))
            answers = send(load(options.seconds))
    found = summarize(answers, duration_s=options.seconds)
    n_failed = found.n_failed + found.n_refused
    return {"per_s": closed_loop_rate(answers), "p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "n_failed": n_failed}


def report_of(options: PeerOptions, rows: dict[str, Row]) -> Report:
    """Ratios and the table of all rows, the same dtype side by side."""
    report = Report("peers", {**asdict(options), "folder": str(options.folder), "add_to": None})
    cells = []
    for name, row in sorted(rows.items(), key=lambda one: one[1]["dtype"]):
        measured = [row["date"], row["commit"], f"`{row['command']}`"]
        if "failed" in row:
            cells.append(
                (name, row["package"], row["note"], "", "", "", "", f"does not run: {row['failed']}", *measured)
            )
            continue
        key = f"vs_{row['peer'].replace('-', '_')}_{row['dtype']}"
        ratios = Spread.of([rate / row["per_s"] for rate in row["ours_per_s"]])
        meaning = (
            f"images/s of ours / of {row['package']} ({row['note']}), both {row['dtype']}, {row['clients']} clients"
        )
        report.add(key, ratios, meaning, Target(">=", 1.0))
        ours = statistics.mean(row["ours_per_s"])
        rates = (f"{row['per_s']:.2f}", f"{ours:.2f}", f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}", row["layout"])
        cells.append((name, row["package"], row["note"], *rates, *measured))
    found = ("peer", "version", "setup", "its images/s", "ours", "its p50 / p99, ms")
    how = ("workers x threads", "date", "commit", "command")
    report.tables["Closed loop, images/s"] = Table(found + how, cells)
    report.notes.append(
        "Ours runs 12 prompt tokens per domain; so does litserve-ours; other peers run plain open_clip models."
    )
    report.samples["rows"] = rows
    return report
