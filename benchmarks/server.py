"""The server under test: a `caspl serve` process over a store of random bundles, and the load that it gets."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.answers import Answer, Swap, closed_loop_rate
from benchmarks.bundles import BundleShape, domain_name, random_bundle
from benchmarks.errors import BenchError
from benchmarks.load import Load, arrival_times, popular_domains, send
from prompt_store.store import Store
from prompted_clip.backbone import Backbone, load_backbone

READY_WITHIN_S = 600.0
STOP_WITHIN_S = 30.0
N_DRAWS = 8192
FORM = "multipart/form-data; boundary=benchmark"
PATIENT = "/classify/{domain}?top_k=1&timeout_ms=30000"
"""Rates of closed loops are measured with the longest deadline, so that slow machines refuse nothing."""

Digests = dict[tuple[str, int], str]


@dataclass(frozen=True)
class ServerOptions:
    """Model and settings of the server, as in the options of `caspl serve`; `extra` is for further settings."""

    backbone: str = "ViT-B-16"
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int = 0
    web_workers: int = 0
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def random_seed(self) -> int | None:
        """Seed of the weights; None for the demo's own."""
        return None if self.backbone.startswith("demo") else 0

    def words(self) -> list[str]:
        """Options of the command."""
        words = ["--backbone", self.backbone, "--device", self.device, "--dtype", self.dtype]
        words += [] if self.backend == "auto" else ["--backend", self.backend]
        return words + (["--web-workers", str(self.web_workers)] if self.web_workers else [])

    def variables(self) -> dict[str, str]:
        """Further settings, as environment variables."""
        given = dict(self.extra)
        if self.random_seed is not None:
            given["random_weights"] = str(self.random_seed)
        if self.threads:
            given["n_torch_threads"] = str(self.threads)
        return {f"CASPL_{name.upper()}": value for name, value in given.items()}


@dataclass
class Server:
    """A running server and its load.

    Attributes:
        url: its address.
        client: for everything but the load.
        domains: the most popular first.
        photographs: JPEG files to classify.
        digests: of all versions in the store.
        ready_after_s: from the start of the process until `/readyz` answered 200.
        alpha: popularity of the domains, see `popular_domains`.
        pid: of its first process.
    """

    url: str
    client: httpx.Client
    domains: Sequence[str]
    photographs: Sequence[Path]
    digests: Mapping[tuple[str, int], str] = field(default_factory=dict)
    ready_after_s: float = 0.0
    alpha: float = 1.0
    pid: int = 0

    def load(self, **changes: object) -> Load:
        """A load of single photographs over the domains, with some fields changed."""
        drawn = popular_domains(len(self.domains), N_DRAWS, alpha=self.alpha)
        given: dict[str, Any] = {
            "url": self.url,
            "bodies": [str(path) for path in self.photographs],
            "domains": [self.domains[index] for index in drawn],
            "path": PATIENT,
        }
        return Load(**(given | changes))

    def closed(self, n_clients: int, duration_s: float, **changes: object) -> list[Answer]:
        """Answers of a closed loop."""
        return send(self.load(**{"n_connections": n_clients, "duration_s": duration_s} | changes))

    def closed_rate(self, n_clients: int, duration_s: float, **changes: object) -> float:
        """Images per second of a closed loop, which is repeated at four times the length if it was too short.

        Raises:
            BenchError: the second one was too short, too.
        """
        try:
            return closed_loop_rate(self.closed(n_clients, duration_s, **changes))
        except BenchError:
            return closed_loop_rate(self.closed(n_clients, 4 * duration_s, **changes))

    def open(self, rate_per_s: float, duration_s: float) -> list[Answer]:
        """Answers of an open loop with the default deadline."""
        return self.open_at(arrival_times(rate_per_s, duration_s))

    def open_at(self, due_s: list[float]) -> list[Answer]:
        """The same, with requests at given times."""
        return send(self.load(due_s=due_s, n_connections=256, path="/classify/{domain}?top_k=1"))

    def activate(self, domain: str, version: int) -> Swap:
        """Make a version live.

        Raises:
            httpx.HTTPStatusError: the server refuses.
        """
        requested_s = time.monotonic()
        self.client.put(f"/domains/{domain}/live", json={"version": version}).raise_for_status()
        return Swap(domain, version, requested_s, time.monotonic())

    def metrics(self) -> dict[str, float]:
        """All samples of `/metrics` without labels, by name; the sum of those that differ in the replica of Ray."""
        text = self.client.get("/metrics").raise_for_status().text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not set(sample.labels) - {"replica"}:
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


def backbone_of(options: ServerOptions) -> Backbone:
    """The backbone that random bundles are made for."""
    return load_backbone(options.backbone, random_seed=options.random_seed)


def fill_store(folder: Path, backbone: Backbone, *, n_domains: int, n_versions: int = 1) -> Digests:
    """Add random domains to a store: version 1 of each is live, the first one has `n_versions`."""
    store = Store.open(folder)
    digests: Digests = {}
    for index in range(n_domains):
        domain = domain_name(index)
        for version in range(1, (1 if index else n_versions) + 1):
            added = store.add(domain, random_bundle(backbone, domain, version, BundleShape()), actor="benchmark")
            digests[domain, added.version] = added.digest
        store.activate(domain, 1, actor="benchmark")
    return digests


@contextmanager
def serving(
    options: ServerOptions,
    store: Path,
    digests: Digests,
    photographs: Sequence[Path],
    *,
    caspl: Path | None = None,
    words: Sequence[str] = (),
) -> Iterator[Server]:
    """Start `caspl serve` and stop it afterwards.

    Args:
        options: model and settings.
        store: folder of the prompt store.
        digests: of its versions.
        photographs: files to classify.
        caspl: the command; this environment's by default.
        words: further options of `caspl serve`.

    Raises:
        BenchError: the server does not become ready.
    """
    port = free_port()
    command = [str(caspl or Path(sys.executable).with_name("caspl")), "serve", "--port", str(port)]
    command += ["--store", str(store), "--log-level", "warning", *options.words(), *words]
    variables = {name: value for name, value in environ.items() if not name.startswith(("CASPL_", "PYTHONPATH"))}
    url = f"http://127.0.0.1:{port}"
    domains = list(dict.fromkeys(domain for domain, _ in digests))
    with tempfile.TemporaryFile() as log, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        began_s = time.monotonic()
        process = subprocess.Popen(  # noqa: S603  our own command
            command, env=variables | options.variables(), cwd=store, stdout=log, stderr=log
        )
        try:
            if not becomes_ready(process, f"{url}/readyz", READY_WITHIN_S):
                log.seek(0)
                msg = f"The server did not become ready: {log.read().decode(errors='replace')[-1000:]}"
                raise BenchError(msg)
            yield Server(url, client, domains, photographs, digests, time.monotonic() - began_s, pid=process.pid)
        finally:
            process.send_signal(signal.SIGINT)  # stops without the drain delay
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def becomes_ready(process: subprocess.Popen[bytes], url: str, within_s: float, *, n_answers: int = 1) -> bool:
    """Wait until a URL answers with success.

    Args:
        process: the server.
        url: its health route.
        within_s: timeout.
        n_answers: different answers to wait for; more than one if each worker answers its process id.

    Returns:
        False if the process ends or the time is up.
    """
    deadline_s = time.monotonic() + within_s
    answers = set()
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(httpx.TransportError):
            response = httpx.get(url, timeout=5, trust_env=False)
            answers |= {response.text} if response.is_success else set()
        if len(answers) >= n_answers:
            return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    """A TCP port that is free on the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def multipart(photographs: Sequence[Path], fields: Sequence[str], path: Path) -> str:
    """Write a body of content type `FORM` with one photograph per field name; returns the path."""
    files = [
        (name, (photo.name, photo.read_bytes()))
        for name, photo in zip(fields, list(photographs) * len(fields), strict=False)
    ]
    request = httpx.Request("POST", "http://localhost", files=files, headers={"Content-Type": FORM})
    path.write_bytes(request.read())
    return str(path)
