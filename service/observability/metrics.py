"""The Prometheus metrics of one service process.

Each application has its own registry, so that two of them can live in one process (tests do that).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
DOMAIN_LABEL: Final = re.compile(rb'[{,]domain="([^"]*)"')
RATIOS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


class Metrics:
    """Counters and histograms of one application; also the batcher's observer.

    Args:
        by_domain: whether metrics have the domain as a label; if not, the label is empty.
    """

    def __init__(self, *, by_domain: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._by_domain = by_domain
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.build = Info("caspl_build", "Versions and configuration.", registry=self.registry)
        self.requests = counter("caspl_http_requests", "Requests answered.", ["route", "method", "code"])
        self.request_s = histogram(
            "caspl_request_duration_seconds", "Time from request head to end of response.", ["route"], buckets=SECONDS
        )
        self.stage_s = histogram(
            "caspl_stage_duration_seconds",
            "Decode: all images of a request. Queue: the oldest image of a batch. Device: a request's slowest batch. "
            "Shape: building the response.",
            ["stage"],
            buckets=SECONDS,
        )
        self.images = counter(
            "caspl_images", "Images by result: answered, rejected (invalid image), failed.", ["domain", "result"]
        )
        self.examples = counter(
            "caspl_examples",
            "Examples by result: added, exists (the domain had this image already), relabelled, removed; kept and "
            "dropped of classify requests.",
            ["domain", "result"],
        )
        self.batch_rows = histogram("caspl_batch_rows", "Images per batch.", buckets=ROWS)
        self.batch_domains = histogram("caspl_batch_domains", "Distinct domains per batch.", buckets=ROWS)
        self.batches = counter(
            "caspl_batches",
            "Batches by start reason: idle, a device thread was free; full, no room for more rows; pipelined, "
            "submitted behind a running batch; drain, at shutdown.",
            ["reason"],
        )
        self.batch_padding = histogram("caspl_batch_padding_ratio", "Share of padding in a batch.", buckets=RATIOS)
        self.entered = counter("caspl_rows_entered", "Images added to the queue.", ["priority"])
        self.queue_rows = gauge("caspl_queue_rows", "Images in the queue.")
        self.dropped = counter("caspl_rows_dropped", "Images that never reached the device.", ["reason"])
        self.bank_slots = gauge(
            "caspl_bank_slots",
            "Slots of the prompt bank: used, free, kept (resident domains, never evicted).",
            ["state"],
        )
        self.bank_loads = counter("caspl_bank_loads", "Stacks copied to the device.")
        self.bank_evictions = counter("caspl_bank_evictions", "Stacks evicted from the device.")
        self.activations = counter(
            "caspl_activations", "Changes of a live version: done, failed.", ["domain", "result"]
        )
        self.activation_s = histogram(
            "caspl_activation_duration_seconds", "Time to load, test and activate a version.", buckets=SECONDS
        )
        self.fits = counter("caspl_fits", "Fits to examples by result: computed, failed.", ["domain", "result"])
        self.fit_s = histogram("caspl_fit_duration_seconds", "Time to compute a fit.", buckets=SECONDS)
        self.rollouts = counter(
            "caspl_rollouts",
            "Rollouts by result on this server: started, stopped, rolled_back (a threshold was exceeded), activated.",
            ["domain", "result"],
        )
        self.rollout_images = counter(
            "caspl_rollout_images",
            "Images of rollouts by result: agreed, disagreed, failed (the candidate gave no answer), dropped (not "
            "compared, usually because the device was busy).",
            ["domain", "result"],
        )
        self.rollout_running = gauge("caspl_rollout_running", "1 for each rollout.", ["domain", "version", "mode"])
        self.rollout_shift = gauge(
            "caspl_rollout_confidence_shift",
            "Mean difference of the highest probabilities, candidate minus live, of the running rollout.",
            ["domain"],
        )
        self.live = gauge("caspl_live_version", "Number of the live version; 0 without one.", ["domain"])
        self.bundles = gauge("caspl_bundle_info", "1 for each live bundle.", ["domain", "version", "digest"])
        self.domains = gauge(
            "caspl_domains",
            "Domains by state: live, stale (an older version serves), broken, idle (no live version).",
            ["state"],
        )
        for state in ("live", "stale", "broken", "idle"):  # 0 is a number, not a gap
            self.domains.labels(state)
        self.sources = gauge(
            "caspl_sources", "Followed sources by state: new (not checked yet), ok, failed.", ["state"]
        )
        for state in ("new", "ok", "failed"):
            self.sources.labels(state)
        self.source_checks = counter(
            "caspl_source_checks", "Checks of followed sources by result: unchanged, updated, failed.", ["result"]
        )
        self.store_reachable = gauge(
            "caspl_store_reachable",
            "1 if the last check for changes reached the store; 0 while a bucket is unreachable.",
        )
        self.store_reachable.set(1)
        self.errors = counter("caspl_errors", "Error responses.", ["code"])

    def rows_queued(self, n_rows: int, priority: str) -> None:
        """Count rows that entered the queue."""
        self.entered.labels(priority.lower()).inc(n_rows)

    def batch_started(self, n_rows: int, waited_s: float, reason: str) -> None:
        """Count a batch, and the wait of its oldest row."""
        self.batches.labels(reason).inc()
        self.batch_rows.observe(n_rows)
        self.stage_s.labels("queue").observe(waited_s)

    def batch_running(self, n_domains: int, n_rows: int, n_padded: int) -> None:
        """Count a batch's domains, and its share of padding."""
        self.batch_domains.observe(n_domains)
        self.batch_padding.observe(1 - n_rows / n_padded)

    def rows_dropped(self, n_rows: int, reason: str) -> None:
        """Count rows that never reached the device."""
        self.dropped.labels(reason).inc(n_rows)

    def bank_changed(self, *, n_used: int, n_free: int, n_kept: int, n_loads: int, n_evictions: int) -> None:
        """Set the slots of the prompt bank, and count loads and evictions."""
        for state, n_slots in (("used", n_used), ("free", n_free), ("kept", n_kept)):
            self.bank_slots.labels(state).set(n_slots)
        self.bank_loads.inc(n_loads)
        self.bank_evictions.inc(n_evictions)

    def image_counted(self, domain: str, result: str) -> None:
        """Count an image by its result."""
        self.images.labels(self._name(domain), result).inc()

    def examples_counted(self, domain: str, result: str, n: int) -> None:
        """Count examples by what was done with them."""
        self.examples.labels(self._name(domain), result).inc(n)

    def domain_activated(self, domain: str, result: str) -> None:
        """Count a change of a live version by its result."""
        self.activations.labels(self._name(domain), result).inc()

    def fit_counted(self, domain: str, result: str) -> None:
        """Count a fit by its result."""
        self.fits.labels(self._name(domain), result).inc()

    def state_changed(self, before: str | None, after: str | None) -> None:
        """Move a domain from one state to another; None is a domain that is not in the table."""
        if before is not None:
            self.domains.labels(before).dec()
        if after is not None:
            self.domains.labels(after).inc()

    def source_changed(self, before: str | None, after: str) -> None:
        """Move a followed source from one state to another; None is a new source."""
        if before is not None:
            self.sources.labels(before).dec()
        self.sources.labels(after).inc()

    def live_version_changed(self, domain: str, before: tuple[int, str] | None, after: tuple[int, str] | None) -> None:
        """Set a domain's live version (number and digest)."""
        if not self._by_domain:
            return
        self.live.labels(domain).set(after[0] if after else 0)
        if before is not None:
            self.bundles.remove(domain, str(before[0]), before[1])
        if after is not None:
            self.bundles.labels(domain, str(after[0]), after[1]).set(1)

    def rollout_counted(self, domain: str, result: str) -> None:
        """Count a rollout that this server started or ended."""
        self.rollouts.labels(self._name(domain), result).inc()

    def rollout_compared(self, domain: str, result: str, n: int, shift: float | None) -> None:
        """Count images of a rollout by result, and set its mean shift; None leaves it unchanged."""
        self.rollout_images.labels(self._name(domain), result).inc(n)
        if self._by_domain and shift is not None:
            self.rollout_shift.labels(domain).set(shift)

    def rollout_changed(self, domain: str, before: tuple[int, str] | None, after: tuple[int, str] | None) -> None:
        """Set a domain's rollout (candidate and mode)."""
        if not self._by_domain or before == after:
            return
        if before is not None:
            self.rollout_running.remove(domain, str(before[0]), before[1])
            self.rollout_shift.remove(domain)
        if after is not None:
            self.rollout_running.labels(domain, str(after[0]), after[1]).set(1)

    def _name(self, domain: str) -> str:
        return domain if self._by_domain else ""

    def text(self) -> bytes:
        """All metrics, in the Prometheus text format."""
        return generate_latest(self.registry)


def only_domains(text: bytes, is_visible: Callable[[str], bool]) -> bytes:
    """Metrics in the Prometheus text format without the lines of domains that are not visible."""
    lines = text.splitlines(keepends=True)
    found = ((line, DOMAIN_LABEL.search(line)) for line in lines)
    return b"".join(line for line, domain in found if domain is None or not domain[1] or is_visible(domain[1].decode()))
