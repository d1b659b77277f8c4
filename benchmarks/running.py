"""A real `caspl serve` process with random tagged domains, to be measured from outside."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.answers import Change
from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.tags import domain_name
from prompt_store.store import Store
from prompted_clip.backbone import Backbone
from service.demo.run import free_port, stop, wait_until_ready

READY_WITHIN_S = 1800.0
"""A thousand domains are all tried out before the first request."""

Digests = dict[tuple[str, int], str]


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: where it answers.
        pid: of its process; 0 when it was started by somebody else.
        client: for everything but the load itself.
        domains: the most popular first.
        digests: of every version there is, by domain and version.
        ready_after_s: from the process's start until it was ready; 0 when it was started by somebody else.
    """

    url: str
    pid: int
    client: httpx.Client
    domains: Sequence[str]
    digests: Mapping[tuple[str, int], str]
    ready_after_s: float = 0.0

    def activate(self, domain: str, version: int) -> Change:
        """Make a version live and say when that was asked and confirmed.

        Raises:
            httpx.HTTPStatusError: it was refused.
        """
        asked_s = time.monotonic()
        self.client.put(f"/domains/{domain}/live", json={"version": version}).raise_for_status()
        return Change(domain, version, asked_s, time.monotonic())

    def counters(self) -> dict[str, float]:
        """Every sample of `/metrics` without labels, by name."""
        text = self.client.get("/metrics").raise_for_status().text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }


def fill_store(
    folder: Path, backbone: Backbone, *, n_domains: int, n_versions: int, shape: BundleShape
) -> tuple[Store, Digests]:
    """Random tagged domains in a store: `n_versions` versions of the hottest, one of each other; version 1 is live."""
    store = Store.open(folder)
    digests: Digests = {}
    for index in range(n_domains):
        domain = domain_name(index)
        for version in range(1, (n_versions if index == 0 else 1) + 1):
            added = store.add(domain, random_bundle(backbone, domain, version, shape), actor="benchmark")
            digests[domain, added.version] = added.digest
        store.activate(domain, 1, actor="benchmark")
    return store, digests


@contextmanager
def serving(
    options: Sequence[str], settings: Mapping[str, object], store: Path, domains: Sequence[str], digests: Digests
) -> Iterator[Service]:
    """Start `caspl serve` in a process of its own and stop it afterwards.

    Args:
        options: of the command, backbone and device among them.
        settings: as `CASPL_*` variables, by field name.
        store: its folder.
        domains: in it, the most popular first.
        digests: of its versions.

    Raises:
        DemoError: it does not become ready, or does not stop as it should.
    """
    port = free_port()
    command = [
        sys.executable,
        "-P",
        "-m",
        "caspl",
        "serve",
        "--port",
        str(port),
        "--store",
        str(store),
        *options,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    chosen = {"drain_delay_s": 0.2, "log_level": "warning", **settings}
    environment |= {f"CASPL_{name.upper()}": str(value) for name, value in chosen.items()}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="caspl-bench-") as folder:
        log = Path(folder) / "log"
        began_s = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)  # noqa: S603  our own command
        try:
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                wait_until_ready(process, client, log, within_s=READY_WITHIN_S)
                yield Service(url, process.pid, client, domains, digests, time.monotonic() - began_s)
            stop(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def per_batch(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Mean images and mean distinct domains of the batches between two looks at the counters."""
    means = {}
    for name in ("caspl_batch_rows", "caspl_batch_domains"):
        n_batches = after[f"{name}_count"] - before[f"{name}_count"]
        means[name.removeprefix("caspl_")] = (
            (after[f"{name}_sum"] - before[f"{name}_sum"]) / n_batches if n_batches else 0.0
        )
    return means
