"""`caspl bench peers`: other servers with the same photographs, clients, threads and dtype, one at a time.

A peer runs once with one worker that has all threads and once with a worker per thread. The faster layout is measured
in turn with ours, three times; the one that is not measured is stopped. Ratios are ours / theirs in images per second.
"""

import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.answers import Answer, closed_loop_rate, summarize
from benchmarks.errors import BenchError
from benchmarks.load import Load, send
from benchmarks.machine import commit, today
from benchmarks.peers.agreement import MIN_AGREEMENT, Classes, agreement, expected_classes
from benchmarks.peers.environments import installed_version, python_of
from benchmarks.peers.servers import N_DOMAINS, PEERS, Peer, converted, paused, started, write_bodies
from benchmarks.photographs import write_photographs
from benchmarks.ratios import ratio
from benchmarks.report import Report, Table, Target, command_line
from benchmarks.server import Server, ServerOptions, backbone_of, fill_store, free_port, serving
from benchmarks.tables import number_of

WARM_UP_S = 3.0
N_TURNS = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class PeerOptions:
    """Options of the command; `extra` are settings of ours, `add_to` is a result whose other rows are kept."""

    names: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    backbone: str = "ViT-B-16"
    threads: int = 2
    clients: int = 4
    seconds: float = 10.0
    side: int = 0
    extra: tuple[tuple[str, str], ...] = ()
    folder: Path = Path("build/peers")
    add_to: Path | None = None

    def layouts(self, peer: Peer) -> list[tuple[int, int]]:
        """Workers and threads of each to try with a peer."""
        return [(1, self.threads), (self.threads, 1)] if self.threads > 1 and peer.has_workers else [(1, self.threads)]

    def ours(self, dtype: str) -> ServerOptions:
        """Our server for a dtype of the peers; `dtype` in `extra` takes precedence."""
        extra = dict(self.extra)
        return ServerOptions(
            backbone=self.backbone,
            device="cpu",
            dtype=extra.pop("dtype", dtype),
            threads=self.threads,
            extra=tuple(extra.items()),
        )

    def peers(self, dtype: str) -> list[Peer]:
        """The chosen peers that can serve a dtype.

        Raises:
            BenchError: an unknown peer, or none of them can.
        """
        known = {peer.name: peer for peer in PEERS}
        if unknown := set(self.names) - set(known):
            msg = f"unknown peers: {', '.join(sorted(unknown))}; choose from {', '.join(known)}"
            raise BenchError(msg)
        chosen = [known[name] for name in self.names or known]
        if able := [peer for peer in chosen if dtype in peer.dtypes]:
            return able
        has = "; ".join(f"{peer.name} has {', '.join(peer.dtypes)}" for peer in chosen)
        raise BenchError(f"no peer serves {dtype!r}: {has}")


def measure(options: PeerOptions, console: Console) -> Report:
    """Install, start and measure each peer; the result gives the reason if one cannot run.

    Raises:
        BenchError: an unknown peer or dtype, or rows of an older version in `add_to`.
    """
    chosen = {dtype: options.peers(dtype) for dtype in options.dtypes}
    rows = kept_rows(options.add_to)
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        digests = fill_store(folder / "store", backbone_of(options.ours("float32")), n_domains=N_DOMAINS)
        expected = expected_classes(options.backbone, options.threads, photographs)
        for dtype, peers in chosen.items():
            with serving(options.ours(dtype), folder / "store", digests, photographs) as server:
                server.closed(options.clients, WARM_UP_S)
                for peer in peers:
                    console.print(f"{peer.name}, {dtype}")
                    row = compare(server, peer, dtype, expected, options, console)
                    rows[row["name"]] = row
    return report_of(options, rows)


def kept_rows(path: Path | None) -> dict[str, Row]:
    """The rows of an earlier result.

    Raises:
        BenchError: an older version wrote them, with one rate instead of one per turn.
    """
    if path is None or not path.is_file():
        return {}
    rows: dict[str, Row] = json.loads(path.read_text())["samples"]["rows"]
    if any("failed" not in row and not isinstance(row["per_s"], list) for row in rows.values()):
        raise BenchError(f"{path} has rows of an older version, without turns; measure without --add")
    return rows


def compare(server: Server, peer: Peer, dtype: str, expected: Classes, options: PeerOptions, console: Console) -> Row:
    """The rates of a peer in its best layout and ours in turn, or the reason why there are none."""
    ours = options.ours(dtype)
    settings = {"dtype": ours.dtype} | dict(ours.extra)
    name = f"{peer.name}, {dtype}" + (f", against {_words(settings)}" if options.extra else "")
    about: Row = {"name": name, "peer": peer.name, "dtype": dtype, "note": peer.note, "clients": options.clients}
    about |= {"ours": settings, "command": command_line(), "date": today(), "commit": commit()}
    try:
        python = python_of(peer.package, options.folder, console)
        about["package"] = f"{peer.package} {installed_version(python, peer.package)}"
        with tempfile.TemporaryDirectory(prefix="peer-") as folder:
            run = PeerRun(server, peer, dtype, options, python, Path(folder), expected)
            run.convert()
            layouts = options.layouts(peer)
            tried = {layout: run.rate_of(layout) for layout in layouts} if len(layouts) > 1 else {}
            best = max(tried, key=lambda one: tried[one]) if tried else layouts[0]
            found = run.in_turn(best)
    except BenchError as error:
        return {"package": peer.package} | about | {"failed": str(error)}
    rates = {f"{workers} x {threads}": rate for (workers, threads), rate in tried.items()}
    return about | found | {"layout": f"{best[0]} x {best[1]}", "tried": rates}


@dataclass(frozen=True)
class PeerRun:
    """A peer and a dtype: its program, its requests and its measurements; `folder` is temporary."""

    server: Server
    peer: Peer
    dtype: str
    options: PeerOptions
    python: Path
    folder: Path
    expected: Classes

    def command(self, workers: int, threads: int, port: int) -> list[str]:
        """Command line of the program."""
        words = [str(self.python), "-m", f"benchmarks.peers.{self.peer.module}", "--port", str(port)]
        words += ["--dtype", self.dtype, "--backbone", self.options.backbone]
        words += ["--workers", str(workers), "--threads", str(threads)]
        if self.peer.converts:
            words += ["--model", str(self.folder), "--photographs", str(self.server.photographs[0].parent)]
        for setting in self.options.extra if self.peer.is_ours else ():
            words += ["--set", "=".join(setting)]
        return words

    def convert(self) -> None:
        """Convert the model, for a peer that needs it."""
        if self.peer.converts:
            converted(self.peer, self.command(1, self.options.threads, 0), self.options.threads)

    def rate_of(self, layout: tuple[int, int]) -> float:
        """Images per second in a layout, of a short measurement."""
        workers, threads = layout
        port = free_port()
        with (
            started(
                self.peer, self.command(workers, threads, port), workers=workers, threads=threads, port=port
            ) as running,
            paused(self._signal_ours),
        ):
            send(self.load(running.url, WARM_UP_S))
            return self.turn(running.url, self.options.seconds / 2)[0]

    def in_turn(self, layout: tuple[int, int]) -> Row:
        """Rates of ours and of the peer in turn, and the peer's latency.

        Raises:
            BenchError: the peer does not run, fails, or classifies differently in float32.
        """
        (workers, threads), seconds = layout, self.options.seconds
        port = free_port()
        ours: list[float] = []
        theirs: list[float] = []
        answers: list[Answer] = []
        with started(
            self.peer, self.command(workers, threads, port), workers=workers, threads=threads, port=port
        ) as running:
            share = agreement(running.url, self.peer, self.expected)
            if self.dtype == "float32" and share is not None and share < MIN_AGREEMENT:
                raise BenchError(f"{self.peer.name} has the expected class in {share:.0%} of the answers only")
            send(self.load(running.url, WARM_UP_S))
            for _ in range(N_TURNS):
                with paused(partial(os.killpg, running.group)):
                    ours.append(self.server.closed_rate(self.options.clients, seconds))
                with paused(self._signal_ours):
                    rate, turn = self.turn(running.url, seconds)
                theirs.append(rate)
                answers += turn
        found = summarize(answers, duration_s=N_TURNS * seconds)
        rates: Row = {"per_s": theirs, "ours_per_s": ours, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms}
        return rates | {"agreement": share, "n_failed": found.n_failed + found.n_refused + found.n_expired}

    def turn(self, url: str, seconds: float) -> tuple[float, list[Answer]]:
        """Rate and answers of a closed loop, which is repeated at four times the length if it was too short."""
        answers = send(self.load(url, seconds))
        try:
            return closed_loop_rate(answers), answers
        except BenchError:
            answers = send(self.load(url, 4 * seconds))
            return closed_loop_rate(answers), answers

    def _signal_ours(self, number: int) -> None:
        os.kill(self.server.pid, number)

    def load(self, url: str, duration_s: float) -> Load:
        """A closed loop."""
        bodies, domains = write_bodies(self.peer, self.server.photographs, self.folder / "bodies")
        return Load(
            url,
            bodies,
            domains,
            duration_s=duration_s,
            n_connections=self.options.clients,
            path=self.peer.path,
            content_type=self.peer.body.content_type,
            headers=dict(self.peer.headers),
        )


def report_of(options: PeerOptions, rows: dict[str, Row]) -> Report:
    """Ratios and the table of all rows, the same dtype side by side."""
    report = Report("peers", {**asdict(options), "folder": str(options.folder), "add_to": None})
    cells = []
    for name, row in sorted(rows.items(), key=lambda one: one[1]["dtype"]):
        measured = [row["date"], row["commit"], f"`{row['command']}`"]
        if "failed" in row:
            reason = f"does not run: {row['failed']}"
            cells.append((name, row["package"], row["note"], "", "", "", "", "", reason, *measured))
            continue
        ratios = ratio(row["ours_per_s"], row["per_s"])
        setting = f"ours {_words(row['ours'])}, {row['clients']} clients"
        meaning = f"images/s of ours / of {row['package']} ({row['note']}), {row['dtype']}; {setting}"
        report.add(number_of(name), ratios, meaning, Target(">=", 1.0))
        theirs, ours = (statistics.median(row[key]) for key in ("per_s", "ours_per_s"))
        latency = f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}"
        same = "" if row["agreement"] is None else f"{row['agreement']:.0%}"
        about = (row["package"], row["note"], f"{theirs:.2f}", f"{ours:.2f}", latency, same, row["n_failed"])
        cells.append((name, *about, row["layout"], *measured))
    found = ("peer", "version", "setup", "its images/s", "ours", "its p50 / p99, ms", "same class", "failed")
    report.tables["Closed loop, images/s"] = Table((*found, "workers x threads", "date", "commit", "command"), cells)
    report.notes += [
        "Ours runs 12 prompt tokens per domain; so does litserve-ours; other peers run plain open_clip models.",
        "same class: share of photographs and domains for which the peer has the class of open_clip in float32.",
    ]
    report.samples["rows"] = rows
    return report


def _words(settings: dict[str, str]) -> str:
    """`bfloat16`, or `int8 backend=openvino`."""
    return " ".join([settings["dtype"], *(f"{name}={value}" for name, value in settings.items() if name != "dtype")])
