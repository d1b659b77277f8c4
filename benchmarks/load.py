"""The load generator: a process of its own, so that it shares no interpreter lock with the server or the benchmark.

    python -m benchmarks.load < plan.json > answers.json

Open loop: every request is handed to a connection when it is due, to the one that was busy last, as pools of
connections do. When all are busy it waits for one, and its latency counts on. Closed loop: every connection sends as
soon as its last answer is back; good for finding a ceiling and for nothing else.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from benchmarks.answers import Answer

HEAD_START_S = 0.3
"""Time for the connections to open before the first request is due."""
IDLE_S = 2.0
"""A connection that nobody used for longer is opened anew: servers close idle ones, and that is no failure."""


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


class Turns:
    """Which connection sends what is due next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[float, int]] = deque()
        self._idle: list[SimpleQueue[tuple[float, int] | None]] = []
        self._is_over = False

    def put(self, due_s: float, number: int) -> None:
        """Give a request to whoever was busy last, or to whoever is free first."""
        with self._lock:
            if self._idle:
                self._idle.pop().put((due_s, number))
            else:
                self._waiting.append((due_s, number))

    def close(self) -> None:
        """Say that nothing more is due."""
        with self._lock:
            self._is_over = True
            for inbox in self._idle:
                inbox.put(None)

    def of_one(self) -> Iterator[tuple[float, int]]:
        """What one connection is to send, until nothing is left."""
        inbox: SimpleQueue[tuple[float, int] | None] = SimpleQueue()
        while True:
            with self._lock:
                if self._waiting:
                    inbox.put(self._waiting.popleft())
                elif self._is_over:
                    return
                else:
                    self._idle.append(inbox)
            if (due := inbox.get()) is None:
                return
            yield due


class Connection:
    """One connection that is kept alive."""

    def __init__(self, plan: Plan) -> None:
        parts = urlsplit(plan.url)
        self._plan = plan
        self._http = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=plan.timeout_s)
        self._used_s = 0.0

    def send(self, due_s: float, domain: str, body: bytes) -> Sent:
        """Send one request and wait for its answer; a failure is an answer with status 0."""
        sent_s = time.monotonic()
        if sent_s - self._used_s > IDLE_S:
            self._http.close()
        status, data, retry_after = 0, b"", ""
        try:
            path = self._plan.path.format(domain=domain)
            headers = {name: value.format(domain=domain) for name, value in self._plan.headers.items()}
            self._http.request("POST", path, body, {"Content-Type": self._plan.content_type, **headers})
            reply = self._http.getresponse()
            data = reply.read()
            status, retry_after = reply.status, reply.headers.get("Retry-After", "")
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            data = repr(error).encode()
        self._used_s = time.monotonic()
        return Sent(due_s, sent_s, self._used_s, domain, status, data, retry_after)

    def close(self) -> None:
        """Hang up."""
        self._http.close()


def run(plan: Plan) -> list[Sent]:
    """Send everything and wait for the last answer."""
    bodies = [Path(path).read_bytes() for path in plan.bodies]
    ended: list[Sent] = []
    begin_s = time.monotonic() + HEAD_START_S
    turns = Turns()
    numbers = count()

    def work() -> None:
        due = turns.of_one() if plan.due_s else _as_fast_as_possible(begin_s, plan.duration_s, numbers)
        with closing(Connection(plan)) as connection:
            for due_s, number in due:
                domain, body = plan.domains[number % len(plan.domains)], bodies[number % len(bodies)]
                ended.append(connection.send(due_s, domain, body))

    workers = [threading.Thread(target=work) for _ in range(plan.n_connections)]
    for worker in workers:
        worker.start()
    for number, offset_s in enumerate(plan.due_s):
        due_s = begin_s + offset_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        turns.put(due_s, number)
    turns.close()
    for worker in workers:
        worker.join()
    return ended


def _as_fast_as_possible(begin_s: float, duration_s: float, numbers: Iterator[int]) -> Iterator[tuple[float, int]]:
    time.sleep(max(0.0, begin_s - time.monotonic()))
    while (now_s := time.monotonic()) < begin_s + duration_s:
        yield now_s, next(numbers)


def read_answer(sent: Sent, n_images: int) -> Answer:
    """What a server of this project said."""
    try:
        body: dict[str, Any] = json.loads(sent.body) if sent.status else {}
        labels = tuple(one["label"] for result in body.get("results", ()) for one in result["predictions"])
    except (ValueError, TypeError, KeyError):
        body, labels = {}, ()
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
