"""The peers: their commands, environments and requests."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.errors import BenchError
from benchmarks.server import FORM

READY_WITHIN_S = 180.0
STOP_WITHIN_S = 15.0
N_LOG_LINES = 8
N_DOMAINS = 8
DOMAINS = tuple(str(index) for index in range(N_DOMAINS))


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that is compared with ours.

    Attributes:
        name: of the row.
        package: whose version is reported, and the name of the requirement file.
        module: program in `benchmarks.peers`.
        note: its setup, for the table.
        health: path that answers 200 when ready.
        path: to post to.
        headers: of every request.
        takes_form: it takes the file in a multipart form with the domain, instead of as the body.
        answers_pid: `health` answers the worker's process id, which shows whether all workers are ready.
    """

    name: str
    package: str
    module: str
    note: str
    health: str = "/health"
    path: str = "/predict"
    headers: tuple[tuple[str, str], ...] = ()
    takes_form: bool = False
    answers_pid: bool = False


PEERS = (
    Peer(
        name="fastapi",
        package="fastapi",
        module="naive_fastapi",
        note="a blocking async def, one image at a time",
        path="/classify/{domain}",
        answers_pid=True,
    ),
    Peer(name="litserve", package="litserve", module="litserve_batched", note="batches of up to 16", takes_form=True),
    Peer(
        name="litserve-ours",
        package="litserve",
        module="litserve_ours",
        note="our model with its prompts behind LitServe",
        takes_form=True,
    ),
    Peer(
        name="ray",
        package="ray",
        module="ray_multiplexed",
        note="@serve.multiplexed and @serve.batch, one domain per batch",
        health="/-/healthz",
        path="/",
        headers=(("serve_multiplexed_model_id", "{domain}"),),
    ),
)


def write_bodies(peer: Peer, photographs: Sequence[Path], folder: Path) -> tuple[list[str], str]:
    """Write the request bodies of a peer: files and content type."""
    if not peer.takes_form:
        return [str(path) for path in photographs], "image/jpeg"
    bodies = []
    for path in photographs:
        for domain in DOMAINS:
            files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
            headers = {"Content-Type": FORM}
            request = httpx.Request("POST", "http://peer", data={"domain": domain}, files=files, headers=headers)
            bodies.append(folder / f"{path.stem}-{domain}")
            bodies[-1].write_bytes(request.read())
    return [str(body) for body in bodies], FORM


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a peer: its threads, no telemetry, no downloads."""
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CASPL_", "PYTHONPATH"))}
    return plain | quiet | {"OMP_NUM_THREADS": str(threads)}


@contextmanager
def started(peer: Peer, command: Sequence[str], *, workers: int, threads: int, port: int) -> Iterator[str]:
    """Start a peer and stop it with all its children; yields its address.

    Raises:
        BenchError: it does not become ready; with the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603  our own command
                command, env=environment(threads), cwd=folder, stdout=file, stderr=file, start_new_session=True
            )
        url = f"http://127.0.0.1:{port}"
        try:
            if not _becomes_ready(process, url + peer.health, workers if peer.answers_pid else 1):
                end = _end(log.read_text(errors="replace"))
                raise BenchError(f"{peer.name} did not become ready: {end}")
            yield url
        finally:
            _stop(process)


def _becomes_ready(process: subprocess.Popen[bytes], url: str, n_answers: int) -> bool:
    """Wait for `n_answers` different answers with status 200, one per worker."""
    deadline_s = time.monotonic() + READY_WITHIN_S
    answers = set()
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(httpx.TransportError):
            response = httpx.get(url, timeout=5, trust_env=False)
            if response.is_success:
                answers.add(response.text)
        if len(answers) >= n_answers:
            return True
        time.sleep(0.2)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-N_LOG_LINES:])
