"""The peers: their programs, environments and requests."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.load import popular_domains
from benchmarks.peers.bodies import DATA_URI, JPEG, MULTIPART, TRITON, TRITON_HEADER_BYTES, BodyFormat
from benchmarks.server import becomes_ready

READY_WITHIN_S = 300.0
STOP_WITHIN_S = 15.0
N_LOG_LINES = 8
N_DOMAINS = 8
DOMAINS = tuple(str(index) for index in range(N_DOMAINS))
N_DRAWS = 256
FLOATS = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that is compared with ours.

    Attributes:
        name: of the row.
        package: whose version is reported, and the name of the requirement file.
        module: program in `benchmarks.peers`.
        note: its setup, for the table.
        dtypes: that it can serve.
        health: path that answers 200 when ready.
        path: to post to.
        headers: of every request.
        body: form of the requests.
        converts: the program first writes a converted model, with `--convert`.
        is_ours: it serves our model with our settings.
        is_plain: it classifies with the weights of `PlainClip`.
        has_workers: it can run several workers.
        answers_pid: `health` answers the worker's process id, which shows whether all workers are ready.
    """

    name: str
    package: str
    module: str
    note: str
    dtypes: tuple[str, ...] = FLOATS
    health: str = "/health"
    path: str = "/predict"
    headers: tuple[tuple[str, str], ...] = ()
    body: BodyFormat = JPEG
    converts: bool = False
    is_ours: bool = False
    is_plain: bool = True
    has_workers: bool = True
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
    Peer(name="litserve", package="litserve", module="litserve_batched", note="batches of up to 16", body=MULTIPART),
    Peer(
        name="litserve-ours",
        package="litserve",
        module="litserve_ours",
        note="our model with its prompts behind LitServe",
        dtypes=(*FLOATS, "int8"),
        body=MULTIPART,
        is_ours=True,
        is_plain=False,
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
    Peer(
        name="openvino",
        package="openvino",
        module="openvino_fastapi",
        note="behind FastAPI: throughput hint, asynchronous requests; int8 by NNCF, calibrated on the photographs",
        dtypes=(*FLOATS, "int8"),
        path="/classify/{domain}",
        converts=True,
        answers_pid=True,
    ),
    Peer(
        name="onnxruntime",
        package="onnxruntime",
        module="onnx_fastapi",
        note="behind FastAPI; int8 is dynamic quantisation",
        dtypes=("float32", "int8"),  # its CPU provider has no bfloat16 matrix products
        path="/classify/{domain}",
        converts=True,
        answers_pid=True,
    ),
    Peer(
        name="triton",
        package="nvidia-pytriton",
        module="triton_server",
        note="Python backend, dynamic batches of up to 16; the server from PyTriton's wheel",
        health="/v2/health/ready",
        path="/v2/models/clip/infer",
        headers=(("Inference-Header-Content-Length", str(TRITON_HEADER_BYTES)),),
        body=TRITON,
    ),
    Peer(
        name="infinity",
        package="infinity-emb",
        module="infinity_clip",
        note="embeddings without classes, JSON with base64, batches of up to 16",
        dtypes=("float32",),  # its dtype option has no effect on a CPU
        path="/embeddings",
        body=DATA_URI,
        converts=True,
        is_plain=False,
        has_workers=False,
    ),
)


def write_bodies(peer: Peer, photographs: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Write the request bodies of a peer: a file and a domain per request, in the order of ours."""
    folder.mkdir(exist_ok=True)
    files: dict[tuple[Path, int], Path] = {}
    for path in photographs:
        for index in range(N_DOMAINS):
            file = folder / (f"{path.stem}-{index}" if peer.body.has_domain else path.stem)
            file.write_bytes(peer.body.write(path.read_bytes(), index))
            files[path, index] = file
    drawn = popular_domains(N_DOMAINS, N_DRAWS, alpha=1.0).tolist()
    requested = [(photographs[number % len(photographs)], index) for number, index in enumerate(drawn)]
    return [str(files[one]) for one in requested], [DOMAINS[index] for _, index in requested]


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a peer: its threads, no telemetry, no downloads."""
    quiet = {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("CASPL_", "PYTHONPATH"))}
    return plain | quiet | {"OMP_NUM_THREADS": str(threads)}


def converted(peer: Peer, command: Sequence[str], threads: int) -> None:
    """Have a peer's program write its model.

    Raises:
        BenchError: it fails; with the end of its log.
    """
    run = subprocess.run(  # noqa: S603  our own command
        [*command, "--convert"], env=environment(threads), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise BenchError(f"{peer.name} could not convert the model: {_end(run.stdout + run.stderr)}")


@dataclass(frozen=True)
class Running:
    """A started peer: its address and its process group."""

    url: str
    group: int


@contextmanager
def paused(kill: Callable[[int], None]) -> Iterator[None]:
    """Stop processes meanwhile with SIGSTOP, since some servers take processor time when idle.

    Args:
        kill: sends a signal to them.
    """
    kill(signal.SIGSTOP)
    try:
        yield
    finally:
        kill(signal.SIGCONT)


@contextmanager
def started(peer: Peer, command: Sequence[str], *, workers: int, threads: int, port: int) -> Iterator[Running]:
    """Start a peer and stop it with all its children.

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
            n_answers = workers if peer.answers_pid else 1
            if not becomes_ready(process, url + peer.health, READY_WITHIN_S, n_answers=n_answers):
                end = _end(log.read_text(errors="replace"))
                raise BenchError(f"{peer.name} did not become ready: {end}")
            yield Running(url, process.pid)  # the leader of its group
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-N_LOG_LINES:])
