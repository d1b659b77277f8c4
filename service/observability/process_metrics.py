"""Sums the counters and histograms of several processes.

A process sends its totals since its start, so lost or repeated messages do no harm. prometheus_client's multiprocess
mode does not fit: it applies to all registries of a process and must be set before the first import.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TypeAlias, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric

Sample: TypeAlias = tuple[str, str, dict[str, str], float]
"""One number of a metric: family, sample name, labels, value."""


def samples_of(registry: CollectorRegistry) -> list[Sample]:
    """All samples of counters and histograms, without creation times."""
    return [
        (family.name, sample.name, sample.labels, sample.value)
        for family in registry.collect()
        if family.type not in {"gauge", "info"}
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def summed(samples: Iterable[Sample]) -> list[Sample]:
    """One sample per name and labels, in order of first appearance."""
    sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
    for family, name, labels, value in samples:
        key = (family, name, tuple(sorted(labels.items())))
        sums[key] = sums.get(key, 0.0) + value
    return [(family, name, dict(labels), value) for (family, name, labels), value in sums.items()]


def exposition(own: CollectorRegistry, others: Iterable[Sample]) -> bytes:
    """The families of one registry in the Prometheus text format, with the samples of other processes added."""
    of_others: dict[str, list[Sample]] = {}
    for sample in others:
        of_others.setdefault(sample[0], []).append(sample)
    totals = []
    for family in own.collect():
        mine = [(family.name, sample.name, sample.labels, sample.value) for sample in family.samples]
        totals.append(Metric(family.name, family.documentation, family.type, family.unit))
        for _, name, labels, value in summed([*mine, *of_others.get(family.name, [])]):
            totals[-1].add_sample(name, labels, value)
    return generate_latest(cast("CollectorRegistry", SimpleNamespace(collect=lambda: totals)))
