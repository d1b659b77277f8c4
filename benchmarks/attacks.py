"""Attacks: hostile clients send to one domain while a good client sends to another.

Phases without attackers come first and last. In each phase the good client sends small photographs, and another client
probes `/livez`.
"""

import asyncio
import io
import math
import mmap
import struct
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from benchmarks.answers import summarize
from benchmarks.load import arrival_times, send
from benchmarks.report import Report, Table, Target
from benchmarks.server import FORM, Server

PER_S, PROBES_PER_S = 10.0, 10.0
CLASSIFY, UPLOAD = "/classify/{domain}", "/domains/{domain}/versions"
JSON, BUNDLE = "application/json", "application/octet-stream"
MIB = 1 << 20
MAX_STALLED_S = 10.5


@dataclass(frozen=True)
class Attack:
    """Clients that send one body repeatedly.

    Attributes:
        name: in the table.
        n_clients: connections at the same time.
        path: with `{domain}` for the attacked domain.
        content_type: of the body.
        body: bytes that each client sends.
        n_missing: bytes of the content length that are never sent; the client waits until the server closes.
    """

    name: str
    n_clients: int
    path: str
    content_type: str
    body: bytes
    n_missing: int = 0


@dataclass
class Phase:
    """Measurements of one phase; `stalled_s` are the durations of unfinished requests until they were closed."""

    name: str
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    n_bad: int = 0
    n_sent: int = 0
    probe_max_ms: float = 0.0
    peak_mib: float = 0.0
    n_attacks: int = 0
    stalled_s: list[float] = field(default_factory=list)


def attacks() -> Iterator[Attack]:
    """All attacks; each body is built when it is needed."""
    yield Attack("JSON bomb, 8 million strings", 4, CLASSIFY, JSON, b'{"images":[' + b'"",' * 8_000_000 + b'""]}')
    yield Attack("256 stalled bodies", 256, CLASSIFY, "image/jpeg", b"\xff\xd8\xff" + bytes(47), n_missing=100_000)
    yield Attack("JPEG of 100 scans, 4,900 px", 8, CLASSIFY, "image/jpeg", scan_bomb(4_900, 100))
    yield Attack("PNG of 800,000 chunks", 4, CLASSIFY, "image/png", chunk_bomb(800_000))
    yield Attack("16 WebP of 5,000 px a request", 5, CLASSIFY, FORM, pixel_flood(5_000, 16))
    yield Attack("40 unfinished bodies of 31 MiB", 40, CLASSIFY, "image/jpeg", bytes(31 * MIB), n_missing=1)
    yield Attack("40 unfinished uploads of 60 MiB", 40, UPLOAD, BUNDLE, bytes(60 * MIB), n_missing=1)


def scan_bomb(side: int, n_scans: int) -> bytes:
    """A progressive JPEG whose shortest scan is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 90)).save(buffer, "JPEG", progressive=True)
    head, *scans = buffer.getvalue()[:-2].split(b"\xff\xda")
    scans += [min(scans, key=len).partition(b"\xff\xc4")[0]] * (n_scans - len(scans))
    return b"\xff\xda".join([head, *scans]) + b"\xff\xd9"


def chunk_bomb(n_chunks: int) -> bytes:
    """A small PNG with many empty chunks."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data, chunk = buffer.getvalue(), struct.pack(">I4sI", 0, b"caSp", zlib.crc32(b"caSp"))
    return data[:33] + chunk * n_chunks + data[33:]


def pixel_flood(side: int, n_images: int) -> bytes:
    """A multipart body of large pictures of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "WEBP", lossless=True)
    head = b'--benchmark\r\nContent-Disposition: form-data; name="images"; filename="a.webp"\r\n\r\n'
    return (head + buffer.getvalue() + b"\r\n") * n_images + b"--benchmark--\r\n"


async def attack_once(server: Server, attack: Attack, phase: Phase) -> None:
    """Send one request and read until the server closes the connection."""
    parts, domain = urlsplit(server.url), server.domains[1]
    head = f"POST {attack.path.format(domain=domain)} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: "
    head += f"{attack.content_type}\r\nContent-Length: {len(attack.body) + attack.n_missing}\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    began_s = time.monotonic()
    phase.n_attacks += 1
    try:
        writer.write(f"{head}\r\n".encode())
        for start in range(0, len(attack.body), MIB):
            writer.write(attack.body[start : start + MIB])
            await writer.drain()
        await reader.read()
    finally:
        if attack.n_missing:
            phase.stalled_s.append(time.monotonic() - began_s)
        writer.close()


def attacker(server: Server, attack: Attack, phase: Phase, duration_s: float) -> Callable[[], None]:
    """A function that attacks for `duration_s`, then waits long enough to see whether the server closes the rest."""

    async def client(end_s: float) -> None:
        while time.monotonic() < end_s:
            with suppress(OSError):
                await attack_once(server, attack, phase)
            await asyncio.sleep(0.05)

    async def run() -> None:
        clients = [client(time.monotonic() + duration_s) for _ in range(attack.n_clients)]
        gathered: Awaitable[object] = asyncio.gather(*clients)
        with suppress(TimeoutError):
            await asyncio.wait_for(gathered, duration_s + MAX_STALLED_S + 1)

    return lambda: asyncio.run(run())


@contextmanager
def watching_memory(pid: int, phase: Phase) -> Iterator[None]:
    """Sample the resident memory of a process and keep the peak."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            phase.peak_mib = max(phase.peak_mib, resident_mib(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0
    for one in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        with suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * mmap.PAGESIZE
    return total / MIB


def observe(server: Server, name: str, duration_s: float, attack: Attack | None) -> Phase:
    """One phase: the good client, the probes, and the attackers if there are any."""
    phase = Phase(name)
    good = server.load(due_s=arrival_times(PER_S, duration_s), domains=[server.domains[0]], path=f"{CLASSIFY}?top_k=1")
    probe = server.load(due_s=arrival_times(PROBES_PER_S, duration_s), path="/livez", method="GET", n_connections=8)
    meanwhile = attacker(server, attack, phase, duration_s) if attack else lambda: None
    with watching_memory(server.pid, phase), ThreadPoolExecutor(1) as pool:
        probing = pool.submit(send, probe)
        answers = send(good, meanwhile=meanwhile)
        probes = probing.result()
    found = summarize(answers, duration_s=duration_s)
    phase.p50_ms, phase.p99_ms, phase.n_sent = found.p50_ms, found.p99_ms, len(answers)
    phase.n_bad = sum(not answer.is_good for answer in answers)
    phase.probe_max_ms = 1000 * max(one.latency_s if one.is_good else math.inf for one in probes)
    return phase


def attack_server(server: Server, report: Report, *, seconds: float) -> None:
    """Run all attacks and add the results to a report."""
    phases = [observe(server, "no attack", seconds, None)]
    base_mib = resident_mib(server.pid)
    phases += [observe(server, attack.name, seconds, attack) for attack in attacks()]
    phases.append(observe(server, "no attack, afterwards", seconds, None))
    calm_ms = max(phases[0].p99_ms, phases[-1].p99_ms)
    attacked = phases[1:-1]
    worst = max(attacked, key=lambda phase: phase.p99_ms)
    n_sent = sum(phase.n_sent for phase in attacked)
    stalled_s = [life_s for phase in attacked for life_s in phase.stalled_s]
    report.add("attacks_p99", worst.p99_ms / calm_ms, f"good client's p99: {worst.name} / no attack", Target("<=", 2))
    n_bad = sum(phase.n_bad for phase in attacked)
    report.add("attacks_bad", n_bad, f"of {n_sent} requests of the good client: not answered", Target("<=", 0))
    peak_mib = max(phase.peak_mib for phase in attacked) - base_mib
    report.add("attacks_memory_mib", peak_mib, "peak of the resident memory above that before, MiB", Target("<=", 400))
    longest_ms = max(phase.probe_max_ms for phase in attacked)
    report.add("attacks_probe_ms", longest_ms, "slowest probe of `/livez`, ms", Target("<=", 250))
    if stalled_s:
        report.add(
            "attacks_stalled_s", max(stalled_s), "longest life of an unfinished request, s", Target("<=", MAX_STALLED_S)
        )
    rows = [
        (
            phase.name,
            phase.n_attacks,
            f"{phase.p50_ms:.0f} / {phase.p99_ms:.0f}",
            f"{phase.n_bad} of {phase.n_sent}",
            f"{phase.probe_max_ms:.0f}",
            f"{phase.peak_mib - base_mib:+.0f}",
            f"{max(phase.stalled_s):.1f}" if phase.stalled_s else "",
        )
        for phase in phases
    ]
    heads = ("attack", "requests", "good client p50 / p99, ms", "not answered", "slowest probe, ms", "memory, MiB")
    report.tables["Attacks"] = Table((*heads, "longest unfinished, s"), rows)
