"""The load generator. Runs in its own process, so that it shares no GIL with the server or the benchmark.

    python -m benchmarks.load < load.json > answers.json

Open loop: requests are sent on schedule, whether or not earlier answers are back. When all connections are busy a
request waits for one, and its latency counts from the moment it was due (no coordinated omission). Closed loop: every
connection sends its next request as soon as its last answer is back.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import Answer

START_DELAY_S = 0.3
MAX_IDLE_S = 2.0
"""Reconnect after this: servers close idle connections, and that must not count as a failure."""


@dataclass(frozen=True)
class Load:
    """Requests to send.

    Attributes:
        url: server, without a path.
        bodies: files to post, in turn.
        domains: one per request, in turn; replaces `{domain}` in the path and the headers.
        due_s: seconds from the start at which each request is due; empty for a closed loop.
        duration_s: length of a closed loop.
        n_connections: most requests in flight.
        n_images: images in each body.
        method: HTTP method; GET sends no body.
    """

    url: str
    bodies: list[str]
    domains: list[str]
    due_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    n_connections: int = 64
    path: str = "/classify/{domain}?top_k=1"
    content_type: str = "image/jpeg"
    headers: dict[str, str] = field(default_factory=dict)
    n_images: int = 1
    timeout_s: float = 60.0
    method: str = "POST"


Response = tuple[int, str, bytes]
"""Status, `Retry-After` and body; status 0 is a failed connection."""


class Connection:
    """One keep-alive HTTP/1.1 connection, one request at a time."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._timeout_s = parts.hostname or "127.0.0.1", parts.port or 80, timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used_s = 0.0

    async def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Response:
        """Send a request; a failure is a response with status 0 and the error as its body."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(head.encode("latin-1") + body)
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.close()
            return 0, "", repr(error).encode()
        finally:
            self._used_s = time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, request: bytes) -> Response:
        if time.monotonic() - self._used_s > MAX_IDLE_S:
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().splitlines()
        headers = dict(line.split(": ", 1) for line in lines if line)
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers.get("retry-after", ""), body


@dataclass(frozen=True)
class Exchange:
    """A request and its response; parsed after the load, since parsing costs time."""

    due_s: float
    sent_s: float
    done_s: float
    domain: str
    response: Response


class Generator:
    """Sends one load."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._bodies = [Path(path).read_bytes() for path in load.bodies]
        self._connections = [Connection(load.url, load.timeout_s) for _ in range(load.n_connections)]
        self._ended: list[Exchange] = []

    async def run(self) -> list[Exchange]:
        """Send everything and wait for the last answer."""
        begin_s = time.monotonic() + START_DELAY_S
        await (self._open_loop(begin_s) if self._load.due_s else self._closed_loop(begin_s))
        for connection in self._connections:
            connection.close()
        return self._ended

    async def _open_loop(self, begin_s: float) -> None:
        idle = self._connections[::-1]  # a stack, as in connection pools
        backlog: deque[tuple[float, int]] = deque()

        async def send(connection: Connection, due_s: float, number: int) -> None:
            await self._send(connection, due_s, number)
            while backlog:
                await self._send(connection, *backlog.popleft())
            idle.append(connection)

        async with asyncio.TaskGroup() as tasks:
            for number, offset_s in enumerate(self._load.due_s):
                due_s = begin_s + offset_s
                await asyncio.sleep(due_s - time.monotonic())
                if idle:
                    tasks.create_task(send(idle.pop(), due_s, number))
                else:
                    backlog.append((due_s, number))

    async def _closed_loop(self, begin_s: float) -> None:
        numbers = count()

        async def repeat(connection: Connection) -> None:
            while (now_s := time.monotonic()) < begin_s + self._load.duration_s:
                await self._send(connection, now_s, next(numbers))

        await asyncio.sleep(begin_s - time.monotonic())
        async with asyncio.TaskGroup() as tasks:
            for connection in self._connections:
                tasks.create_task(repeat(connection))

    async def _send(self, connection: Connection, due_s: float, number: int) -> None:
        load = self._load
        domain, body = load.domains[number % len(load.domains)], self._bodies[number % len(self._bodies)]
        headers = {name: value.format(domain=domain) for name, value in load.headers.items()}
        sent_s = time.monotonic()
        path = load.path.format(domain=domain)
        if load.method == "GET":
            body = b""
        response = await connection.send(load.method, path, body, {"Content-Type": load.content_type, **headers})
        self._ended.append(Exchange(due_s, sent_s, time.monotonic(), domain, response))


def parse(exchange: Exchange, n_images: int) -> Answer:
    """Parse an answer; fields that the body lacks keep their defaults."""
    status, retry_after, data = exchange.response
    body: Any = None
    with suppress(ValueError):
        body = json.loads(data)
    body = body if isinstance(body, dict) else {}
    results = body.get("results") or ()
    return Answer(
        due_s=exchange.due_s,
        sent_s=exchange.sent_s,
        done_s=exchange.done_s,
        status=status,
        requested=exchange.domain,
        domain=str(body.get("domain", "")),
        version=int(body.get("version") or 0),
        digest=str(body.get("digest", "")),
        labels=tuple(one["label"] for result in results for one in result.get("predictions") or ()),
        n_errors=sum(result.get("error") is not None for result in results),
        server_ms=body.get("timing_ms") or {},
        retry_after=retry_after,
        n_images=n_images,
    )


def send(load: Load, *, meanwhile: Callable[[], object] = lambda: None) -> list[Answer]:
    """Send a load from a process of its own.

    Args:
        load: requests to send.
        meanwhile: called in this thread while the load runs; ends by itself.

    Returns:
        All answers, by the time at which their requests were due.

    Raises:
        subprocess.CalledProcessError: the generator failed.
    """
    command = [sys.executable, "-m", "benchmarks.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603  our own
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        process.stdin.write(json.dumps(asdict(load)).encode())
        process.stdin.close()
        meanwhile()
        output = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [Answer(**{**one, "labels": tuple(one["labels"])}) for one in json.loads(output)]


def arrival_times(rate_per_s: float, duration_s: float, *, seed: int = 0) -> list[float]:
    """Sorted seconds of the arrivals of a Poisson process, at least one."""
    rng = np.random.default_rng(seed)
    times_s: list[float] = np.sort(rng.uniform(0, duration_s, max(1, rng.poisson(rate_per_s * duration_s)))).tolist()
    return times_s


def popular_domains(n_domains: int, n_draws: int, *, alpha: float, seed: int = 0) -> NDArray[np.int64]:
    """Domain indices drawn with probability proportional to (index + 1) ** -alpha; alpha 0 is uniform."""
    weights = np.arange(1, n_domains + 1, dtype=np.float64) ** -alpha
    return np.random.default_rng(seed).choice(n_domains, size=n_draws, p=weights / weights.sum())


def main() -> None:
    """Read a load from stdin, send it, write the answers to stdout."""
    load = Load(**json.load(sys.stdin))
    exchanges = sorted(asyncio.run(Generator(load).run()), key=lambda one: one.due_s)
    json.dump([asdict(parse(one, load.n_images)) for one in exchanges], sys.stdout)


if __name__ == "__main__":
    main()
