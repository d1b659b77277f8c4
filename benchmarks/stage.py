"""What `caspl bench serve` measures: a real service process, what is sent to it, and the same model in this process."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console

from benchmarks.answers import Answer, busy_rate, is_torn
from benchmarks.arrivals import arrival_times, draw_domains
from benchmarks.bundles import BundleShape
from benchmarks.load import Plan, send
from benchmarks.photographs import write_photographs
from benchmarks.running import Service, fill_store, serving
from benchmarks.served_model import TRIALS_S, ServedModel
from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from service.server import chosen_device, load_model

PARTS = ("start", "idle", "engine", "pipeline", "sweep", "storm", "overload")
N_VERSIONS = 4
"""Of the hottest domain; a swap storm goes round them, so that a stale answer cannot look like a fresh one."""
CEILING_CLIENTS = 32
BATCHES_OF_CLIENTS = 4
"""That as many clients of one image each would fill on a GPU: one that runs, one that is ready, and those under way."""
MOST_CONNECTIONS = 2048
PATH = "/classify/{domain}?top_k=1"
PATIENT = f"{PATH}&timeout_ms=30000"
"""With the longest deadline that is allowed: on a slow machine many clients wait longer than the usual one, and who is
refused and asks again at once is no measure of a capacity."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServedModel):
    """What to measure; see the command's help."""

    web_workers: int = 0
    n_domains: int = 64
    alpha: float = 1.0
    cv: float = 1.0
    side: int = 224
    clients: int = 4
    seconds: float = 20.0
    rates: tuple[float, ...] = ()
    slo_ms: float = 100.0
    swap_storm: float = 0.0
    overload: float = 0.0
    only: tuple[str, ...] = ()
    label: str = ""
    url: str = ""

    def wants(self, part: str) -> bool:
        """Whether a part of the measurement is to be run: all of them, unless some are named."""
        return not self.only or part in self.only

    @cached_property
    def n_ceiling_clients(self) -> int:
        """Clients with an image each that keep the device as busy as it can be."""
        if self.url or not chosen_device(settings := self.settings()).startswith("cuda"):
            return CEILING_CLIENTS
        return max(CEILING_CLIENTS, BATCHES_OF_CLIENTS * settings.max_batch_rows)

    @property
    def slo_s(self) -> float:
        """The objective in seconds."""
        return self.slo_ms / 1000

    def service_settings(self) -> dict[str, object]:
        """The same for the process, as variables."""
        given: dict[str, object] = {"backbone": self.backbone, "device": self.device, "dtype": self.dtype}
        given["trials_s"] = TRIALS_S
        if self.weights_seed is not None:
            given["random_weights"] = self.weights_seed
        if self.threads:
            given["n_torch_threads"] = self.threads
        return given | dict(self.extra)


@dataclass
class Stage:
    """A running service with what is sent to it.

    Attributes:
        options: of the command.
        service: the process.
        photographs: JPEG files.
        model: an engine's model like the service's in this process; None for a service that somebody else started.
        console: told what happens.
        store: of the service; None likewise.
    """

    options: ServeOptions
    service: Service
    photographs: Sequence[Path]
    model: PromptedClip | None
    console: Console
    store: Store | None = None

    def plan(self, due_s: Sequence[float] | np.ndarray, **changes: object) -> Plan:
        """An open-loop plan over the domains by popularity; a closed one without times."""
        rng = np.random.default_rng(self.options.seed)
        n_draws = max(len(due_s), 4096)
        drawn = draw_domains(len(self.service.domains), n_draws, alpha=self.options.alpha, rng=rng)
        given: dict[str, Any] = {
            "url": self.service.url,
            "bodies": [str(path) for path in self.photographs],
            "domains": [self.service.domains[index] for index in drawn],
            "due_s": [float(due) for due in due_s],
            "n_connections": self.connections(6),
        }
        return Plan(**(given | changes))

    def connections(self, times: int) -> int:
        """So many times the clients that find the ceiling, within reason."""
        return min(times * self.options.n_ceiling_clients, MOST_CONNECTIONS)

    def closed_rate(self, n_clients: int, duration_s: float, **changes: object) -> float:
        """Images per second of so many clients, each sending as soon as its answer is back.

        Raises:
            BenchError: the time was too short.
        """
        return busy_rate(self.closed(n_clients, duration_s, **changes))

    def closed(self, n_clients: int, duration_s: float, **changes: object) -> list[Answer]:
        """What so many clients were told, each of which sends as soon as its answer is back."""
        return send(self.plan([], **{"n_connections": n_clients, "duration_s": duration_s, "path": PATIENT} | changes))

    def open(self, rate_per_s: float, duration_s: float, *, seed: int, **changes: object) -> list[Answer]:
        """Requests due at a rate, bursty if the options say so."""
        return send(self.plan(arrival_times(rate_per_s, duration_s, cv=self.options.cv, seed=seed), **changes))

    def torn(self, answers: Sequence[Answer]) -> int:
        """How many answers were put together from more than one version."""
        return sum(is_torn(answer, self.service.digests) for answer in answers if answer.is_good)


@contextmanager
def stage(options: ServeOptions, console: Console) -> Iterator[Stage]:
    """Start what is measured, or take the service at `--url` as it is.

    Raises:
        BenchError: there is nothing to send.
        DemoError: the service does not start.
    """
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", side=options.side or None)
        if options.url:
            with httpx.Client(base_url=options.url, timeout=60, trust_env=False) as client:
                listed = client.get("/domains").raise_for_status().json()["domains"]
                domains = [one["domain"] for one in listed if one["version"]]
                yield Stage(options, Service(options.url, 0, client, domains, {}), photographs, None, console)
            return
        console.print(f"loading {options.backbone}, making {options.n_domains} domains")
        model = load_model(options.settings())
        store, digests = fill_store(
            folder / "store", model.backbone, n_domains=options.n_domains, n_versions=N_VERSIONS, shape=BundleShape()
        )
        domains = [domain for domain, version in digests if version == 1]
        extra = ["--web-workers", str(options.web_workers)] if options.web_workers else []
        console.print("starting caspl serve")
        with serving(extra, options.service_settings(), store.root, domains, digests) as service:
            warm = Stage(options, service, photographs, model, console, store)
            warm.closed(options.clients, 1.0)
            yield warm
