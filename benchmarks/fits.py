"""Fit load: heads are fitted to a domain's examples one after the other while requests run.

The examples are cuts of the photographs, uploaded as a client would. Before each fit one label changes, so that none is
cached. Phases with and without fits alternate at one offered rate.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.answers import Answer, percentile_ms
from benchmarks.bundles import BundleShape, label, random_bundle
from benchmarks.load import arrival_times, send
from benchmarks.ratios import Spread, ratio
from benchmarks.report import Report, Table, Target
from benchmarks.server import Server
from prompt_store.store import Store
from prompted_clip.backbone import Backbone

DOMAIN = "fits"
N_CLASSES, N_EACH = 80, 16
PER_REQUEST = 16
N_PAIRS = 3
LOAD = 0.4
"""Offered rate as a share of the capacity."""


@dataclass
class Phase:
    """A phase of load, and the seconds of the fits made in it."""

    answers: list[Answer] = field(default_factory=list)
    fits_s: list[float] = field(default_factory=list)

    @property
    def latencies_s(self) -> list[float]:
        """Latencies of its answered requests."""
        return [answer.latency_s for answer in self.answers if answer.is_good]

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latencies."""
        return percentile_ms(self.latencies_s, 99)


def add_domain(store: Path, backbone: Backbone) -> None:
    """Add the domain that heads are fitted to."""
    opened = Store.open(store)
    data = random_bundle(backbone, DOMAIN, 1, BundleShape(n_classes=N_CLASSES))
    opened.activate(DOMAIN, opened.add(DOMAIN, data, actor="benchmark").version, actor="benchmark")


def add_examples(server: Server) -> float:
    """Upload the labelled cuts; returns the seconds that it takes."""
    rng, began_s = np.random.default_rng(0), time.monotonic()
    pictures = [Image.open(path).convert("RGB") for path in server.photographs]
    cuts = [(label(DOMAIN, 1, index % N_CLASSES), _cut(pictures, index, rng)) for index in range(N_CLASSES * N_EACH)]
    for start in range(0, len(cuts), PER_REQUEST):
        files = [(name, ("cut.jpg", data)) for name, data in cuts[start : start + PER_REQUEST]]
        server.client.post(f"/domains/{DOMAIN}/examples?timeout_ms=30000", files=files).raise_for_status()
    return time.monotonic() - began_s


def _cut(pictures: list[Image.Image], index: int, rng: np.random.Generator) -> bytes:
    """A cut of a photograph as a JPEG file; those of one class are near each other."""
    picture = pictures[index % len(pictures)]
    side = min(picture.size) // 3
    corner = np.random.default_rng(index % N_CLASSES).uniform(0.1, 0.9, 2) + rng.normal(0, 0.05, 2)
    left, top = (corner.clip(0, 1) * (np.array(picture.size) - side)).astype(int).tolist()
    file = io.BytesIO()
    picture.crop((left, top, left + side, top + side)).save(file, "JPEG", quality=90)
    return file.getvalue()


def fit_until(server: Server, end_s: float, changes: Iterator[int]) -> list[float]:
    """Change a label and fit, again and again; returns the seconds of each fit."""
    fits_s = []
    while (began_s := time.monotonic()) < end_s:
        number = next(changes)
        body = {"ids": [1], "label": label(DOMAIN, 1, number % N_CLASSES)}
        server.client.patch(f"/domains/{DOMAIN}/examples", json=body).raise_for_status()
        server.client.post(f"/domains/{DOMAIN}/fit", json={"based_on": 1}).raise_for_status()
        fits_s.append(time.monotonic() - began_s)
    return fits_s


def fit_load(server: Server, report: Report, *, rate_per_s: float, seconds: float) -> None:
    """Alternate phases with and without fits and report the latencies."""
    n_examples = N_CLASSES * N_EACH
    report.add("examples_per_s", n_examples / add_examples(server), f"examples added per second, {n_examples:,} in all")
    changes, phase_s = count(1), seconds / (2 * N_PAIRS)
    calm_s = fit_until(server, time.monotonic() + phase_s, changes)
    report.add("fit_s", Spread.of(calm_s), f"relabel, fit and publish, {n_examples:,} x {N_CLASSES}, without load, s")
    phases = [Phase() for _ in range(2 * N_PAIRS)]
    for index, phase in enumerate(phases):
        load = server.load(due_s=arrival_times(rate_per_s, phase_s, seed=index), n_connections=256)

        def fit(phase: Phase = phase) -> None:
            phase.fits_s = fit_until(server, time.monotonic() + phase_s, changes)

        phase.answers = send(load, meanwhile=fit) if index % 2 else send(load)
    add_fit_load(report, phases)


def add_fit_load(report: Report, phases: list[Phase]) -> None:
    """Add the numbers of all phases, without and with fits in turn, to a report."""
    calm, fitting = phases[::2], phases[1::2]
    pooled = [percentile_ms([one for phase in some for one in phase.latencies_s], 99) for some in (fitting, calm)]
    report.add("fit_p99_ratio", pooled[0] / pooled[1], "p99 latency with fits / without", Target("<=", 1.3))
    by_pair = ratio([phase.p99_ms for phase in fitting], [phase.p99_ms for phase in calm])
    report.add("fit_p99_ratio_by_pair", by_pair, "the same, each phase with fits / the one before it")
    n_bad = sum(not answer.is_good for phase in phases for answer in phase.answers)
    report.add("fit_failed", n_bad, "requests that failed or were refused", Target("<=", 0))
    rows = [
        (
            "fits" if phase.fits_s else "no fits",
            len(phase.answers),
            f"{percentile_ms(phase.latencies_s, 50):.1f}",
            f"{phase.p99_ms:.1f}",
            len(phase.fits_s),
            f"{max(phase.fits_s):.2f}" if phase.fits_s else "",
        )
        for phase in phases
    ]
    headings = ("phase", "requests", "p50 ms", "p99 ms", "fits", "slowest fit s")
    report.tables["Fit load"] = Table(headings, rows)
