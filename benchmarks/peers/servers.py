"""The peers: how each is started, and what its requests look like."""

import base64
import json
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
DTYPES = ("bfloat16", "float32")
N_DOMAINS = 8
DOMAINS = tuple(str(index) for index in range(N_DOMAINS))


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that is compared with ours, or the plain library.

    Attributes:
        name: of the row.
        package: whose version is reported.
        module: program in `benchmarks.peers`; empty for infinity's own command.
        note: what it is.
        requirements: requirement file; empty for this environment.
        health: path that answers 200 when ready; empty for a loop without a server.
        path: to post to.
        headers: of every request.
        body: `raw` bytes, `form` (raw bytes in a multipart form) or `data-url` (base64 in JSON).
        dtypes: that it computes in on a CPU.
        can_scale: whether it can run several workers.
        answers_pid: `health` answers the worker's process id, so that readiness of all workers is visible.
    """

    name: str
    package: str
    module: str
    note: str
    requirements: str = ""
    health: str = "/health"
    path: str = "/predict"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = "raw"
    dtypes: tuple[str, ...] = DTYPES
    can_scale: bool = True
    answers_pid: bool = False


PEERS = (
    Peer(
        name="open_clip",
        package="open_clip_torch",
        module="open_clip_loop",
        note="the library in a loop, batches of 8, no HTTP",
        health="",
    ),
    Peer(
        name="fastapi",
        package="fastapi",
        module="naive_fastapi",
        note="a blocking async def, one image at a time",
        requirements="fastapi",
        path="/classify/{domain}",
        answers_pid=True,
    ),
    Peer(
        name="litserve",
        package="litserve",
        module="litserve_batched",
        note="batches of up to 16",
        requirements="litserve",
        body="form",
    ),
    Peer(
        name="litserve-ours",
        package="litserve",
        module="litserve_ours",
        note="our model with its prompts behind LitServe",
        requirements="litserve",
        body="form",
    ),
    Peer(
        name="ray",
        package="ray",
        module="ray_multiplexed",
        note="@serve.multiplexed and @serve.batch, one domain per batch",
        requirements="ray",
        health="/-/healthz",
        path="/",
        headers=(("serve_multiplexed_model_id", "{domain}"),),
    ),
    Peer(
        name="infinity",
        package="infinity-emb",
        module="",
        note="embedding only, no classes; always float32 on a CPU",
        requirements="infinity",
        path="/embeddings",
        body="data-url",
        dtypes=("float32",),
        can_scale=False,
    ),
)


def write_bodies(peer: Peer, photographs: Sequence[Path], folder: Path) -> tuple[list[str], str]:
    """Write the request bodies of a peer: files and content type."""
    if peer.body == "raw":
        return [str(path) for path in photographs], "image/jpeg"
    paths = []
    for path in photographs:
        for domain in DOMAINS if peer.body == "form" else DOMAINS[:1]:
            paths.append(folder / f"{path.stem}-{domain}")
            if peer.body == "form":
                files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
                request = httpx.Request(
                    "POST", "http://peer", data={"domain": domain}, files=files, headers={"Content-Type": FORM}
                )
                paths[-1].write_bytes(request.read())
            else:
                url = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
                paths[-1].write_text(json.dumps({"model": "clip", "modality": "image", "input": [url]}))
    return [str(path) for path in paths], FORM if peer.body == "form" else "application/json"


def command_of(peer: Peer, python: Path, words: Sequence[str], port: int, clip_folder: Path) -> list[str]:
    """Command that starts a peer."""
    if peer.module:
        return [str(python), "-m", f"benchmarks.peers.{peer.module}", "--port", str(port), *words]
    options = ["--model-id", str(clip_folder), "--served-model-name", "clip", "--engine", "torch", "--device", "cpu"]
    options += ["--no-model-warmup", "--no-bettertransformer", "--batch-size", "16", "--dtype", "float32"]
    return [str(python.with_name("infinity_emb")), "v2", *options, "--port", str(port), "--host", "127.0.0.1"]


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a peer: its threads, and no telemetry or downloads."""
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    quiet |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
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


def loop_rate(commands: Sequence[Sequence[str]], threads: int) -> float:
    """Images per second of programs that run in parallel and print their rates.

    Raises:
        BenchError: one failed; with the end of its log.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment(threads)}
    processes = [subprocess.Popen(list(command), **pipes) for command in commands]  # type: ignore[call-overload]  # noqa: S603  ours
    rate = 0.0
    for process in processes:
        output, errors = process.communicate()
        if process.returncode:
            raise BenchError(_end(errors))
        rate += json.loads(output.splitlines()[-1])["images_per_s"]
    return rate


def _becomes_ready(process: subprocess.Popen[bytes], url: str, n_answers: int) -> bool:
    """Wait until so many different answers with status 200 have come, one per worker."""
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
