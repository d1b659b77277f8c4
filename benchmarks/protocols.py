"""`python -m benchmarks.protocols`: what a request costs the event loop before and after the service's own code.

The same refusal is sent by uvicorn with each way to speak HTTP, in a process of its own, to clients that send a
photograph's worth of bytes again and again. This chose the parser of `service.http.protocol`.
"""

import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, cast

import httpx
import typer
import uvicorn
from rich.console import Console
from rich.markdown import Markdown
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from benchmarks.load import Plan, send
from benchmarks.machine import foot, versions
from service.http.protocol import PatientProtocol
from service.http.server import address_of, listen
from training.demo.pages import fill_page

PROTOCOLS: Mapping[str, object] = {
    "uvicorn with h11": H11Protocol,
    "uvicorn with httptools": HttpToolsProtocol,
    "as served": partial(PatientProtocol, rest_within_s=30.0),
}
BODY_BYTES = 12_000
"""Of a photograph at the size of ViT-B/16."""
CPU_PATH = "/cpu"
CLIENTS = 4


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 429 as the service would; under `/cpu`, how long this process has computed."""
    _ = receive
    status, text = (200, f"{time.process_time()}") if scope["path"] == CPU_PATH else (429, json.dumps({"a": "b" * 300}))
    names = {"content-length": str(len(text)), "content-type": "application/json", "retry-after": "2"}
    headers = [(name.encode(), value.encode()) for name, value in names.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@dataclass(frozen=True)
class Cost:
    """Of one request, measured over many.

    Attributes:
        cpu_ms: of a core.
        per_s: requests answered per second.
    """

    cpu_ms: float
    per_s: float


@contextmanager
def serving(name: str) -> Iterator[str]:
    """A process that speaks HTTP in one of the ways; yields its URL."""
    with listen("127.0.0.1", 0) as listener:
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(name, listener), daemon=True)
        process.start()
        try:
            yield address_of(listener)
        finally:
            process.terminate()
            process.join()


def _serve(name: str, listener: socket.socket) -> None:
    http = cast("type[asyncio.Protocol]", PROTOCOLS[name])
    config = uvicorn.Config(refuse, http=http, ws="none", lifespan="off", loop="asyncio", log_config=None)
    uvicorn.Server(config).run(sockets=[listener])


def cost_of(url: str, body: Path, seconds: float) -> Cost:
    """What requests cost a server while clients ask it without pause."""
    before_s = _cpu_s(url)
    answers = send(Plan(url, [str(body)], ["a"], duration_s=seconds, n_connections=CLIENTS))
    n_refused = sum(answer.is_refused for answer in answers)
    return Cost(cpu_ms=(_cpu_s(url) - before_s) / n_refused * 1e3, per_s=n_refused / seconds)


def _cpu_s(url: str) -> float:
    return float(httpx.get(url + CPU_PATH, trust_env=False).raise_for_status().text)


def markdown_table(costs: Mapping[str, Cost]) -> str:
    """Costs by protocol."""
    lines = ["| HTTP is spoken by | core-ms per request | requests/s |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {one.cpu_ms:.3f} | {one.per_s:.0f} |" for name, one in costs.items())])


def main(
    rounds: Annotated[int, typer.Option(min=1, help="how often each way has its turn")] = 7,
    seconds: Annotated[float, typer.Option(min=0.1, help="of a turn")] = 1.0,
    page: Annotated[Path | None, typer.Option(help="page whose table to fill")] = None,
) -> None:
    """Measure what each way to speak HTTP costs per request."""
    console = Console()
    costs: dict[str, list[Cost]] = {name: [] for name in PROTOCOLS}
    with ExitStack() as stack:
        body = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "body"
        body.write_bytes(bytes(BODY_BYTES))
        urls = {name: stack.enter_context(serving(name)) for name in PROTOCOLS}
        for url in urls.values():
            cost_of(url, body, 0.5)
        for turn in range(rounds):
            console.print(f"round {turn + 1} of {rounds}")
            for name, url in urls.items():
                costs[name].append(cost_of(url, body, seconds))
    table = markdown_table(
        {
            name: Cost(median(one.cpu_ms for one in of_name), median(one.per_s for one in of_name))
            for name, of_name in costs.items()
        }
    )
    below = foot("python -m benchmarks.protocols", versions(("uvicorn", "h11", "httptools")))
    text = f"{table}\n\nMedians of {rounds} rounds, {CLIENTS} clients, {BODY_BYTES} bytes per request. {below}"
    console.print(Markdown(text))
    if page is not None:
        fill_page(page, "protocols", text)


if __name__ == "__main__":
    typer.run(main)
