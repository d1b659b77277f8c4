"""Fit load: once a second a label of a domain changes, and a head is fitted to all examples and published.

The examples are crops of the photographs, uploaded over HTTP. The change of a label keeps each fit from being cached;
one a second is the pace of fast labelling, and fits one after the other would be more of them the faster they are.
Phases with and without fits alternate at one offered rate of requests.
"""

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.answers import closed_loop_rate
from benchmarks.bundles import BundleShape, label, random_bundle
from benchmarks.load import send
from benchmarks.phases import N_PAIRS, Phase, add_p99_ratios, alternate, phase_table
from benchmarks.ratios import Spread
from benchmarks.report import Report, Target
from benchmarks.server import Server
from prompt_store.store import Store
from prompted_clip.backbone import Backbone

DOMAIN = "fits"
N_CLASSES, N_EACH = 80, 16
SATURATING_CLIENTS = 32
PER_REQUEST = 16
EVERY_S = 1.0
"""From the start of one fit to that of the next, at least."""


def add_domain(store: Path, backbone: Backbone) -> None:
    """Add the domain that heads are fitted to."""
    opened = Store.open(store)
    data = random_bundle(backbone, DOMAIN, 1, BundleShape(n_classes=N_CLASSES))
    opened.activate(DOMAIN, opened.add(DOMAIN, data, actor="benchmark").version, actor="benchmark")


def add_examples(server: Server) -> float:
    """Upload the labelled crops; returns the duration in seconds."""
    rng, began_s = np.random.default_rng(0), time.monotonic()
    pictures = [Image.open(path).convert("RGB") for path in server.photographs]
    crops = [(label(DOMAIN, 1, index % N_CLASSES), _crop(pictures, index, rng)) for index in range(N_CLASSES * N_EACH)]
    for start in range(0, len(crops), PER_REQUEST):
        files = [(name, ("crop.jpg", data)) for name, data in crops[start : start + PER_REQUEST]]
        server.client.post(f"/domains/{DOMAIN}/examples?timeout_ms=30000", files=files).raise_for_status()
    return time.monotonic() - began_s


def _crop(pictures: list[Image.Image], index: int, rng: np.random.Generator) -> bytes:
    """A crop of a photograph as a JPEG file; crops of one class are near each other."""
    picture = pictures[index % len(pictures)]
    side = min(picture.size) // 3
    corner = np.random.default_rng(index % N_CLASSES).uniform(0.1, 0.9, 2) + rng.normal(0, 0.05, 2)
    left, top = (corner.clip(0, 1) * (np.array(picture.size) - side)).astype(int).tolist()
    file = io.BytesIO()
    picture.crop((left, top, left + side, top + side)).save(file, "JPEG", quality=90)
    return file.getvalue()


def fit_for(server: Server, changes: Iterator[int], duration_s: float) -> list[float]:
    """Change a label and fit, once a second; returns the seconds of each fit."""
    fits_s, end_s = [], time.monotonic() + duration_s
    while (began_s := time.monotonic()) < end_s:
        number = next(changes)
        body = {"ids": [1], "label": label(DOMAIN, 1, number % N_CLASSES)}
        server.client.patch(f"/domains/{DOMAIN}/examples", json=body).raise_for_status()
        server.client.post(f"/domains/{DOMAIN}/fit", json={"based_on": 1}).raise_for_status()
        fits_s.append(time.monotonic() - began_s)
        time.sleep(max(0.0, min(began_s + EVERY_S, end_s) - time.monotonic()))
    return fits_s


def fit_load(server: Server, report: Report, *, rate_per_s: float, seconds: float) -> None:
    """Alternate phases with and without fits and report the latencies."""
    n_examples = N_CLASSES * N_EACH
    report.add("examples_per_s", n_examples / add_examples(server), f"examples added per second, {n_examples:,} in all")
    fits = partial(fit_for, server, count(1))
    alone_s = fits(seconds / (2 * N_PAIRS))
    meaning = f"relabel, fit and publish, {n_examples:,} x {N_CLASSES}, once a second without load, s"
    report.add("fit_s", Spread.of(alone_s), meaning)
    add_fit_load(report, alternate(server, fits, rate_per_s=rate_per_s, seconds=seconds))
    add_saturated(server, report, fits, seconds=seconds / (2 * N_PAIRS))


def add_saturated(server: Server, report: Report, fits: Callable[[float], list[float]], *, seconds: float) -> None:
    """Report fits while a closed loop takes all cores, and the loop's rate with fits / without."""
    load = server.load(n_connections=SATURATING_CLIENTS, duration_s=seconds)
    calm = closed_loop_rate(send(load))
    fits_s: list[float] = []
    with_fits = closed_loop_rate(send(load, meanwhile=lambda: fits_s.extend(fits(seconds))))
    meaning = f"relabel, fit and publish, beside a closed loop of {SATURATING_CLIENTS} clients, s"
    report.add("fit_saturated_s", Spread.of(fits_s), meaning)
    report.add("rate_with_fits", with_fits / calm, "images/s of that loop with fits / without")


def add_fit_load(report: Report, phases: list[Phase[float]]) -> None:
    """Add the numbers of all phases, without and with fits in turn, to a report."""
    add_p99_ratios(report, phases, "fit", Target("<=", 1.3))
    n_bad = sum(not answer.is_good for phase in phases for answer in phase.answers)
    report.add("fit_failed", n_bad, "requests that failed or were refused", Target("<=", 0))
    headings = ("fits", "slowest fit s")
    report.tables["Fit load"] = phase_table(phases, "fit", headings, lambda fits_s: f"{max(fits_s):.2f}")
