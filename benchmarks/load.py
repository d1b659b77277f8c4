"""The load generator: a process of its own, so that it shares no interpreter lock with the server or the benchmark.

    python -m benchmarks.load < plan.json > answers.json

Open loop: every request is handed to a connection when it is due, to the one that was busy last, as pools of
connections do. When all are busy it waits for one, and its latency counts on. Closed loop: every connection sends as
soon as its last answer is back; good for finding a ceiling and for nothing else.
"""

import asyncio
import json
import select
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.answers import Answer
from benchmarks.connection import Connection

HEAD_START_S = 0.3
"""Time for everything to be in place before the first request is due."""


@dataclass(frozen=True)
class Plan:
    """What to send.

    Attributes:
        url: of the server, without a path.
        bodies: files to send, taken in turn.
        domains: who is asked, one per request and in turn; the path is `path` with `{domain}` replaced.
        due_s: seconds from the start at which each request is due; empty for a closed loop.
        duration_s: of a closed loop.
        n_connections: at most so many requests at a time.
        path: with `{domain}`, and a query if one is wanted.
        content_type: of the bodies.
        headers: further ones, with `{domain}` replaced too.
        n_images: in each body.
        timeout_s: a request without an answer by then has failed.
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


@dataclass(frozen=True)
class Sent:
    """A request's raw end, read only after the load is over: reading costs time."""

    due_s: float
    sent_s: float
    done_s: float
    asked: str
    status: int
    body: bytes
    retry_after: str


class PromptSelector(selectors.EpollSelector):
    """Waits to the microsecond: the system call behind asyncio's waits for whole milliseconds, rounded up."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready within so many seconds."""
        if timeout is None or timeout > 0:
            select.select([self.fileno()], [], [], timeout)
        return super().select(0)


class Generator:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bodies = [Path(path).read_bytes() for path in plan.bodies]
        self._connections = [Connection(plan.url, plan.timeout_s) for _ in range(plan.n_connections)]
        self._ended: list[Sent] = []

    async def run(self) -> list[Sent]:
        """Send everything and wait for the last answer."""
        begin_s = time.monotonic() + HEAD_START_S
        await (self._keep_to_schedule(begin_s) if self._plan.due_s else self._send_without_pause(begin_s))
        for connection in self._connections:
            connection.close()
        return self._ended

    async def _keep_to_schedule(self, begin_s: float) -> None:
        # The last of these was busy last.
        idle = self._connections[::-1]
        waiting: deque[tuple[float, int]] = deque()

        async def carry(connection: Connection, due_s: float, number: int) -> None:
            await self._send(connection, due_s, number)
            while waiting:
                await self._send(connection, *waiting.popleft())
            idle.append(connection)

        async with asyncio.TaskGroup() as tasks:
            for number, offset_s in enumerate(self._plan.due_s):
                due_s = begin_s + offset_s
                await asyncio.sleep(due_s - time.monotonic())
                if idle:
                    tasks.create_task(carry(idle.pop(), due_s, number))
                else:
                    waiting.append((due_s, number))

    async def _send_without_pause(self, begin_s: float) -> None:
        numbers = count()

        async def repeat(connection: Connection) -> None:
            while (now_s := time.monotonic()) < begin_s + self._plan.duration_s:
                await self._send(connection, now_s, next(numbers))

        await asyncio.sleep(begin_s - time.monotonic())
        async with asyncio.TaskGroup() as tasks:
            for connection in self._connections:
                tasks.create_task(repeat(connection))

    async def _send(self, connection: Connection, due_s: float, number: int) -> None:
        plan = self._plan
        domain, body = plan.domains[number % len(plan.domains)], self._bodies[number % len(self._bodies)]
        headers = {name: value.format(domain=domain) for name, value in plan.headers.items()}
        sent_s = time.monotonic()
        reply = await connection.post(
            plan.path.format(domain=domain), body, {"Content-Type": plan.content_type, **headers}
        )
        self._ended.append(Sent(due_s, sent_s, reply.done_s, domain, reply.status, reply.body, reply.retry_after))


def run(plan: Plan) -> list[Sent]:
    """Send everything and wait for the last answer."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PromptSelector())) as runner:
        return runner.run(Generator(plan).run())


def read_answer(sent: Sent, n_images: int) -> Answer:
    """What a server of this project said."""
    try:
        body: dict[str, Any] = json.loads(sent.body) if sent.status else {}
        labels = tuple(one["label"] for result in body.get("results", ()) for one in result["predictions"])
        ran_s = body["timing_ms"]["device"] / 1000 if labels else None
    except (ValueError, TypeError, KeyError):
        body, labels, ran_s = {}, (), None
    return Answer(
        due_s=sent.due_s,
        sent_s=sent.sent_s,
        done_s=sent.done_s,
        status=sent.status,
        asked=sent.asked,
        domain=str(body.get("domain", "")),
        version=int(body.get("version", 0) or 0),
        digest=str(body.get("digest", "")),
        labels=labels,
        retry_after=sent.retry_after,
        n_images=n_images,
        ran_s=ran_s,
    )


def send(plan: Plan, *, meanwhile: Callable[[], None] = lambda: None) -> list[Answer]:
    """Run a plan in a process of its own.

    Args:
        plan: what to send.
        meanwhile: called while it runs, in this thread; ends by itself.

    Returns:
        Every request's end, in the order in which they were due.

    Raises:
        subprocess.CalledProcessError: the generator failed.
    """
    command = [sys.executable, "-m", "benchmarks.load"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603  our own
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        process.stdin.write(json.dumps(asdict(plan)).encode())
        process.stdin.close()
        meanwhile()
        output = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [Answer(**{**one, "labels": tuple(one["labels"])}) for one in json.loads(output)]


def main(words: Sequence[str]) -> None:
    """Read a plan, run it, write what came back."""
    if words:
        sys.exit("usage: python -m benchmarks.load < plan.json > answers.json")
    plan = Plan(**json.load(sys.stdin))
    answers = [read_answer(sent, plan.n_images) for sent in run(plan)]
    json.dump([asdict(answer) for answer in sorted(answers, key=lambda answer: answer.due_s)], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
