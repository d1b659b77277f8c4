"""How each peer is started, and what a request to it looks like."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.errors import BenchError
from service.demo.run import free_port

READY_WITHIN_S = 180.0
STOP_WITHIN_S = 15.0
LINES_TOLD = 8
DTYPES = ("float32", "bfloat16")
N_DOMAINS = 8
DOMAINS = tuple(str(index) for index in range(N_DOMAINS))


@dataclass(frozen=True)
class Peer:
    """A server, or the plain library, that is measured beside ours.

    Attributes:
        name: for people.
        requirements: its requirement file's name; empty for this environment.
        package: whose version is told.
        module: of `benchmarks.peers`; empty for infinity, which has its own command.
        health: answers 200 when it is ready; empty for what is no server.
        path: to post to.
        headers: of every request.
        body: `raw`, the file itself; `litserve` or `infinity`, JSON as they want it.
        note: what a reader should know.
        dtypes: that it really computes in on a CPU.
    """

    name: str
    requirements: str
    package: str
    module: str
    health: str
    path: str
    headers: dict[str, str]
    body: str
    note: str
    dtypes: tuple[str, ...] = DTYPES


PEERS = (
    Peer("open_clip", "", "open_clip_torch", "open_clip_loop", "", "", {}, "raw", "the library in a loop, no HTTP"),
    Peer(
        "fastapi",
        "fastapi",
        "fastapi",
        "naive_fastapi",
        "/health",
        "/classify/{domain}",
        {},
        "raw",
        "async def, blocking, one image at a time",
    ),
    Peer(
        "litserve", "litserve", "litserve", "litserve_batched", "/health", "/predict", {}, "litserve", "batches of 16"
    ),
    Peer(
        "ray",
        "ray",
        "ray",
        "ray_multiplexed",
        "/-/healthz",
        "/",
        {"serve_multiplexed_model_id": "{domain}"},
        "raw",
        "@serve.multiplexed and @serve.batch, one domain per batch",
    ),
    Peer(
        "infinity",
        "infinity",
        "infinity-emb",
        "",
        "/health",
        "/embeddings",
        {},
        "infinity",
        "embedding only, no classes; float32 on a CPU, whatever it is asked for",
        ("float32",),
    ),
)


def write_bodies(peer: Peer, photographs: Sequence[Path], folder: Path) -> tuple[list[str], str]:
    """Request bodies of the same photographs as a peer wants them, and their content type."""
    if peer.body == "raw":
        return [str(path) for path in photographs], "image/jpeg"
    paths = []
    for number, (path, domain) in enumerate((path, domain) for path in photographs for domain in range(N_DOMAINS)):
        image = base64.b64encode(path.read_bytes()).decode()
        body: dict[str, Any] = {"image": image, "domain": domain}
        if peer.body == "infinity":
            body = {"model": "clip", "modality": "image", "input": [f"data:image/jpeg;base64,{image}"]}
        paths.append(folder / f"{peer.name}-{number}.json")
        paths[-1].write_text(json.dumps(body))
    return [str(path) for path in paths], "application/json"


def command_of(peer: Peer, python: Path, words: Sequence[str], clip_folder: Path, port: int) -> list[str]:
    """What starts a peer."""
    if peer.module:
        return [str(python), "-m", f"benchmarks.peers.{peer.module}", "--port", str(port), *words]
    options = ["--model-id", str(clip_folder), "--served-model-name", "clip", "--engine", "torch", "--device", "cpu"]
    options += ["--no-model-warmup", "--no-bettertransformer", "--batch-size", "16", "--dtype", "float32"]
    return [str(python.with_name("infinity_emb")), "v2", *options, "--port", str(port), "--host", "127.0.0.1"]


def environment(threads: int) -> dict[str, str]:
    """The same threads for everybody, and no calls home."""
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    quiet |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CASPL_", "PYTHONPATH"))}
    return plain | quiet | {"OMP_NUM_THREADS": str(threads)}


@contextmanager
def started(peer: Peer, command: Sequence[str], threads: int, port: int) -> Iterator[str]:
    """A peer's process and all it starts; yields its address, and leaves nothing running.

    Raises:
        BenchError: it does not become ready; with its last words.
    """
    with tempfile.TemporaryDirectory(prefix=f"{peer.name}-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603  our own command
                command, env=environment(threads), cwd=folder, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _wait(peer, process, port, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def loop_rate(command: Sequence[str], threads: int) -> float:
    """Images per second of what is no server, by its own count.

    Raises:
        BenchError: it failed; with its last words.
    """
    return float(json.loads(run_to_end(command, threads).splitlines()[-1])["images_per_s"])


def run_to_end(command: Sequence[str], threads: int) -> str:
    """What a command prints.

    Raises:
        BenchError: it failed; with its last words.
    """
    run = subprocess.run(list(command), env=environment(threads), capture_output=True, text=True, check=False)  # noqa: S603  ours
    if run.returncode:
        raise BenchError(_end(run.stderr))
    return run.stdout


def this_python() -> Path:
    """The interpreter of this environment."""
    return Path(sys.executable)


def new_port() -> int:
    """A free one."""
    return free_port()


def _wait(peer: Peer, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_s = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < give_up_s:
        try:
            if httpx.get(f"http://127.0.0.1:{port}{peer.health}", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise BenchError(f"{peer.name} did not become ready. Its last words: {_end(log.read_text(errors='replace'))}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything in its session that it started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN_S)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _end(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-LINES_TOLD:])
