"""The Prometheus metrics of one service process.

Each application has its own registry, so that two of them can live in one process (tests do that).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one application; also the batcher's observer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "caspl_http_requests", "Answered requests.", ["route", "method", "code"], registry=self.registry
        )
        self.request_s = Histogram(
            "caspl_request_duration_seconds",
            "From the first byte in to the last byte out.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_s = Histogram(
            "caspl_stage_duration_seconds",
            "Decode: all images of a request. Queue: the oldest image of a batch. Device: a request's slowest batch.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "caspl_images", "Images by what became of them.", ["domain", "result"], registry=self.registry
        )
        self.batch_rows = Histogram("caspl_batch_rows", "Images per batch.", buckets=ROWS, registry=self.registry)
        self.batch_domains = Histogram(
            "caspl_batch_domains", "Distinct domains per batch.", buckets=ROWS, registry=self.registry
        )
        self.queue_rows = Gauge("caspl_queue_rows", "Images waiting for the device.", registry=self.registry)
        self.dropped = Counter(
            "caspl_rows_dropped", "Images that left the queue unanswered.", ["reason"], registry=self.registry
        )
        self.activations = Counter(
            "caspl_activations", "Changes of a live version.", ["domain", "result"], registry=self.registry
        )
        self.activation_s = Histogram(
            "caspl_activation_duration_seconds",
            "From a bundle's bytes to serving it.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.live = Gauge(
            "caspl_live_version", "Version a domain answers with; 0 when none.", ["domain"], registry=self.registry
        )
        self.domains = Gauge(
            "caspl_domains",
            "Domains by state; a stale one answers with an older version, a broken one does not answer.",
            ["state"],
            registry=self.registry,
        )
        self.errors = Counter("caspl_errors", "Answers with a problem.", ["code"], registry=self.registry)

    def batch_formed(self, n_rows: int, waited_s: float) -> None:
        """Count a batch and the wait of its oldest row."""
        self.batch_rows.observe(n_rows)
        self.stage_s.labels("queue").observe(waited_s)

    def row_dropped(self, reason: str) -> None:
        """Count a row that never reached the device."""
        self.dropped.labels(reason).inc()

    def queue_changed(self, n_waiting: int) -> None:
        """Show how many rows wait."""
        self.queue_rows.set(n_waiting)

    def domains_changed(self, versions: Mapping[str, int], n_in_state: Mapping[str, int]) -> None:
        """Show what every domain answers with (0: nothing), and how many domains are in each state."""
        for domain, version in versions.items():
            self.live.labels(domain).set(version)
        for state, n_domains in n_in_state.items():
            self.domains.labels(state).set(n_domains)

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self.registry)
