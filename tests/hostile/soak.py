"""A server under moderate load with invalid images and swaps for a long time: its resources must not grow.

    make soak MINUTES=30

The load is 30 % of the capacity; one image in a hundred is invalid, from the corpus; a domain changes its version every
ten seconds. Memory, open files, threads and temporary files of the server are sampled. Before that, the server runs
every batch size and gets requests on all connections at once; the first quarter of the samples is warm-up, too.
"""

import argparse
import base64
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil

from benchmarks.answers import Swap as Activation
from benchmarks.answers import is_mixed, is_stale, percentile_ms
from benchmarks.load import arrival_times, send
from benchmarks.photographs import write_photographs
from benchmarks.report import Report, Table, Target
from benchmarks.server import PATIENT, ServerOptions, backbone_of, fill_store, serving
from service.settings import Settings
from tests.hostile.bad_images import bad_images
from tests.results import publish
from tests.service.processes import JoinedThreads

LOAD, SWAP_EVERY_S, SAMPLE_EVERY_S = 0.3, 10.0, 5.0
ROUND_S = 60.0
BURST_S, N_CONNECTIONS = 10.0, 64
MAX_BATCH_ROWS = Settings.model_fields["max_batch_rows"].default
N_VERSIONS = 6
WARM_UP = 0.25
MAX_RATE = 200.0
"""Images per second; more would only load the generator."""
MAX_GROWTH = {"resident MiB": 8, "open files": 8, "threads": 0, "temporary files": 0}
"""Allowed growth; each connection of the load is an open file."""
NAMES = tuple(MAX_GROWTH)


def sample(pid, folders):
    """Memory, open files and threads of a server with all its processes, and temporary files."""
    process = psutil.Process(pid)
    processes = [process, *process.children(recursive=True)]
    resident = sum(one.memory_info().rss for one in processes) / 2**20
    n_threads, n_open = sum(one.num_threads() for one in processes), sum(one.num_fds() for one in processes)
    n_temporary = sum(path.name.startswith(".tmp-") or path.parent.name == "tmp" for path in every_file(folders))
    return resident, n_open, n_threads, n_temporary


def every_file(folders):
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


class Watch(JoinedThreads):
    """Samples a server in a thread, and activates versions of one domain in another."""

    def __init__(self, server, folders, domain):
        self.samples, self.swaps, self.errors = [], [Activation(domain, 1, -np.inf, -np.inf)], []
        self._server, self._folders, self._domain = server, folders, domain
        super().__init__(
            partial(self._repeat, SAMPLE_EVERY_S, self._sample), partial(self._repeat, SWAP_EVERY_S, self._swap)
        )
        self._versions = cycle([*range(2, N_VERSIONS + 1), 1])

    def _repeat(self, every_s, job):
        while not self.is_over.wait(every_s):
            try:
                job()
            except Exception as error:  # noqa: BLE001  reported at the end
                self.errors.append(repr(error))

    def _sample(self):
        self.samples.append((time.monotonic(), *sample(self._server.pid, self._folders)))

    def _swap(self):
        self.swaps.append(self._server.activate(self._domain, next(self._versions)))


def warm_up(server, folder, bodies):
    """Bring memory and threads to what they reach under any load, before they are sampled.

    oneDNN keeps 0.6 MiB for each layer and batch size from the first such batch on; at 30 % of the capacity the larger
    sizes are rare. Pools start another thread when all are busy.
    """
    photographs = [base64.b64encode(path.read_bytes()).decode() for path in server.photographs]
    for n_images in range(1, MAX_BATCH_ROWS + 1):  # the images of one request share a batch
        images = [{"b64": photographs[n % len(photographs)]} for n in range(n_images)]
        path = PATIENT.format(domain=server.domains[0])
        server.client.post(path, json={"images": images}).raise_for_status()
    parsed_by_threads = folder / "photograph.json"
    parsed_by_threads.write_text(json.dumps({"images": [{"b64": photographs[0]}]}))
    burst = server.load(bodies=bodies, n_connections=N_CONNECTIONS, duration_s=BURST_S)
    send(replace(burst, bodies=[str(parsed_by_threads)], content_type="application/json"))
    send(burst)


def soak(options, minutes, folder):
    """Run the load and return the report."""
    report = Report("soak", asdict(options) | {"minutes": minutes})
    temporary = folder / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"] = str(temporary)  # the server's
    photographs = write_photographs(folder / "photographs", side=224)
    bodies = [str(photographs[n % len(photographs)]) for n in range(99 * len(photographs))]
    cases = bad_images()[:: len(bad_images()) // 20]
    for number, case in enumerate(cases[: len(photographs)]):
        path = folder / f"bad-{number}"
        path.write_bytes(case.data)
        bodies.insert(100 * number + 50, str(path))
    backbone = backbone_of(options)
    digests = fill_store(folder / "store", backbone, n_domains=8, n_versions=N_VERSIONS)
    with serving(options, folder / "store", digests, photographs) as server:
        warm_up(server, folder, bodies)
        rate_per_s = min(MAX_RATE, LOAD * server.closed_rate(8, 10.0))
        answers, ends_s = [], time.monotonic() + 60 * minutes
        with Watch(server, (folder / "store", temporary), server.domains[0]) as watch:
            while (left_s := ends_s - time.monotonic()) > 1:
                due_s = arrival_times(rate_per_s, min(ROUND_S, left_s), seed=len(answers))
                answers += send(server.load(due_s=due_s, bodies=bodies, n_connections=N_CONNECTIONS))
        summarize(report, watch, answers, server.digests, rate_per_s, minutes)
    return report


def summarize(report, watch, answers, digests, rate_per_s, minutes):
    good = [answer for answer in answers if answer.is_good]
    rejected = [answer for answer in answers if answer.status in {413, 415, 422}]
    none = Target("<=", 0)
    report.add("soak_minutes", minutes, f"minutes at {rate_per_s:.0f} images/s, {len(answers):,} requests")
    report.add(
        "soak_failed",
        len(answers) - len(good) - len(rejected),
        "requests neither answered nor rejected as invalid",
        none,
    )
    report.add("soak_rejected", len(rejected), "invalid images, rejected")
    report.add("soak_mixed", sum(is_mixed(one, digests) for one in good), "answers that mix versions", none)
    report.add(
        "soak_stale", sum(is_stale(one, watch.swaps) for one in good), "answers of a version that was not live", none
    )
    report.add("soak_swaps", len(watch.swaps) - 1, "activations")
    report.add("soak_swaps_failed", len(watch.errors), "failed activations or samples", none)
    report.add("soak_p99_ms", percentile_ms([one.latency_s for one in good], 99), "p99 latency, ms")
    samples = np.array(watch.samples)
    samples[:, 0] -= samples[0, 0]
    settled = samples[samples[:, 0] >= WARM_UP * samples[-1, 0]]
    rows = []
    for column, name in enumerate(NAMES, 1):
        values = settled[:, column]
        slope = float(np.polyfit(settled[:, 0], values, 1)[0] * 3600)
        rows.append(
            (
                name,
                *(f"{value:.0f}" for value in (samples[0, column], values[0], values[-1], values.max())),
                f"{slope:+.1f}",
            )
        )
        key = f"soak_{name.replace(' ', '_').lower()}_growth"
        growth = float(np.median(values[-len(values) // 4 :]) - np.median(values[: max(1, len(values) // 4)]))
        report.add(
            key,
            growth,
            f"{name}: median of the last quarter after warm-up minus the first quarter",
            Target("<=", MAX_GROWTH[name]),
        )
    headings = ("", "first sample", "after warm-up", "last", "largest", "slope per hour")
    report.tables["The server, all its processes"] = Table(headings, rows)
    report.notes += [f"Failed: {error}" for error in watch.errors[:5]]
    report.samples = {name: samples[:, column].round(2).tolist() for column, name in enumerate(("seconds", *NAMES))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--backbone", default="demo-student")
    parser.add_argument("--web-workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="caspl-soak-") as name:
        options = ServerOptions(
            backbone=words.backbone,
            device="cpu",
            dtype="float32",
            web_workers=words.web_workers,
            extra=(("max_images", str(MAX_BATCH_ROWS)),),  # a request fills a batch
        )
        report = soak(options, words.minutes, Path(name))
    return publish(report, words.out, f"make soak MINUTES={words.minutes:g}")


if __name__ == "__main__":
    sys.exit(main())
