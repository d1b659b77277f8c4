"""`caspl bench peers`: other servers on the same photographs, client and threads, one at a time.

Ours is measured before and after every peer, in the same way; while a peer runs, ours is idle. A ratio above 1 means
that ours answers more images per second.
"""

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.answers import busy_rate, summarize
from benchmarks.errors import BenchError
from benchmarks.interleaved import Ratio
from benchmarks.load import Plan, send
from benchmarks.peers import servers
from benchmarks.peers.environments import installed_version, python_of
from benchmarks.peers.servers import DOMAINS, DTYPES, PEERS, Peer, command_of, loop_rate, started, write_bodies
from benchmarks.report import Bar, Measured, Plot, Report, Table
from benchmarks.stage import ServeOptions, Stage, stage

WARM_UP_S = 2.0
SLO_S = 1.0


@dataclass(frozen=True)
class PeerOptions:
    """What to measure; see the command's help."""

    names: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES
    backbone: str = "ViT-B-16"
    threads: int = 2
    clients: int = 4
    seconds: float = 15.0
    side: int = 0
    folder: Path = Path("build/peers")
    add_to: Path | None = None
    seed: int = 0


def measure(options: PeerOptions, console: Console) -> Report:
    """Install, start and measure each peer; one that does not run here says why in the result.

    Raises:
        BenchError: an unknown peer.
    """
    known = {peer.name: peer for peer in PEERS}
    if unknown := set(options.names) - set(known):
        msg = f"Unknown peers {', '.join(sorted(unknown))}; known are {', '.join(known)}."
        raise BenchError(msg)
    found: dict[str, dict[str, Any]] = {}
    if options.add_to is not None and options.add_to.is_file():
        found = json.loads(options.add_to.read_text())["samples"]["peers"]
    ours = ServeOptions(
        backbone=options.backbone,
        device="cpu",  # as the peers
        threads=options.threads,
        n_domains=servers.N_DOMAINS,
        alpha=0.0,
        side=options.side,
        clients=options.clients,
        seed=options.seed,
    )
    with stage(ours, console) as on:
        for name in options.names or tuple(known):
            for dtype in (one for one in options.dtypes if one in known[name].dtypes):
                console.print(f"{name}, {dtype}")
                found[f"{name}, {dtype}"] = _beside(on, known[name], dtype, options, console)
    return _report(options, found)


def _beside(on: Stage, peer: Peer, dtype: str, options: PeerOptions, console: Console) -> dict[str, Any]:
    """A peer's rate and ours around it, or why there is none."""
    try:
        python = python_of(peer.requirements, options.folder, console) if peer.requirements else servers.this_python()
        version = installed_version(python, peer.package)
        before = on.closed_rate(options.clients, options.seconds / 2)
        its = _run(on, peer, python, dtype, options)
        after = on.closed_rate(options.clients, options.seconds / 2)
    except BenchError as error:
        return {"version": peer.package, "failed": str(error)}
    return {"version": f"{peer.package} {version}", "ours_per_s": [before, after], "note": peer.note, **its}


def _run(on: Stage, peer: Peer, python: Path, dtype: str, options: PeerOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        clip_folder = options.folder.resolve() / "clip"
        if peer.body == "infinity" and not (clip_folder / "config.json").is_file():
            loop = [str(python), "-m", "benchmarks.peers.infinity_folder", str(clip_folder)]
            servers.run_to_end(loop, options.threads)
        words = ["--backbone", options.backbone, "--dtype", dtype, "--threads", str(options.threads)]
        port = servers.new_port()
        command = command_of(peer, python, words, clip_folder, port)
        if not peer.health:
            photographs = [str(path) for path in on.photographs]
            rate = loop_rate([*command, "--seconds", str(options.seconds), *photographs], options.threads)
            return {"per_s": rate, "p50_ms": None, "p99_ms": None, "n_failed": 0}
        bodies, content_type = write_bodies(peer, on.photographs, folder)
        with started(peer, command, options.threads, port) as url:

            def load(duration_s: float) -> Plan:
                return Plan(
                    url,
                    bodies,
                    list(DOMAINS),
                    duration_s=duration_s,
                    n_connections=options.clients,
                    path=peer.path,
                    content_type=content_type,
                    headers=peer.headers,
                )

            send(load(WARM_UP_S))
            answers = send(load(options.seconds))
    its = summarize(answers, duration_s=options.seconds, slo_s=SLO_S)
    if not its.n_answered:
        msg = f"{peer.name} answered none of {len(answers)} requests; the first status was {answers[0].status}."
        raise BenchError(msg)
    percentiles = {f"{key}_ms": its.percentiles_ms[key] for key in ("p50", "p99")}
    return {"per_s": busy_rate(answers), **percentiles, "n_failed": its.n_failed + its.n_refused}


def _report(options: PeerOptions, found: dict[str, dict[str, Any]]) -> Report:
    report = Report("peers", {**asdict(options), "folder": str(options.folder), "add_to": None})
    rows = []
    for name, its in found.items():
        if "failed" in its:
            rows.append((name, its["version"], "", "", "", "", f"does not run here: {its['failed']}"))
            continue
        ratios = [rate / its["per_s"] for rate in its["ours_per_s"]]
        report.numbers.append(
            Measured(
                f"ours_vs_{name.replace(', ', '_')}",
                Ratio.of(ratios),
                f"images/s of ours / of {its['version']} in {name.split(', ')[1]}, {options.clients} clients",
                Bar(">=", 1.0),
            )
        )
        latencies = [f"{its[key]:.0f}" if its[key] is not None else "" for key in ("p50_ms", "p99_ms")]
        ours = statistics.mean(its["ours_per_s"])
        rows.append((name, its["version"], f"{its['per_s']:.2f}", f"{ours:.2f}", *latencies, its["note"]))
    report.tables[f"{options.clients} clients in a closed loop, images/s"] = Table(
        ("peer", "version", "its images/s", "ours beside it", "its p50 ms", "p99 ms", ""), rows
    )
    report.notes.append(
        "Peers serve plain open_clip models: no prompts, no versions, no swaps. Ours runs its prompts (12 tokens per "
        "domain) in the dtype it chooses by itself; peers run in float32, as they come, and in bfloat16 where they can."
    )
    report.samples["peers"] = found
    measured = {name: its["per_s"] for name, its in found.items() if "per_s" in its}
    report.plots["Images per second"] = Plot("images/s", "", {"": (list(measured), list(measured.values()))})
    return report
