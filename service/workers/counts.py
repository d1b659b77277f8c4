"""The metrics of several processes as if they were one: the web processes' counts added to the device process's own.

A web process sends all its numbers since it began, never differences: whatever is lost or comes twice changes nothing.
What a web process had counted when it ended is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.workers.wire import Sample

Key = tuple[str, str, tuple[tuple[str, str], ...]]


def samples_of(registry: CollectorRegistry) -> list[Sample]:
    """Every number of a registry that can be added up: counters and histograms; no gauges, facts, times of creation."""
    return [
        (family.name, sample.name, sample.labels, sample.value)
        for family in registry.collect()
        if family.type not in {"gauge", "info"}
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def added_up(parts: Iterable[Iterable[Sample]]) -> list[Sample]:
    """The samples of several processes as one list, in the order in which each first comes."""
    sums: dict[Key, float] = {}
    for samples in parts:
        for family, name, labels, value in samples:
            key = (family, name, tuple(sorted(labels.items())))
            sums[key] = sums.get(key, 0.0) + value
    return [(family, name, dict(labels), value) for (family, name, labels), value in sums.items()]


class Sums(Collector):
    """The numbers of one registry plus those of other processes.

    Args:
        own: this process's registry; a family that it does not have is not shown.
        others: what the others counted.
    """

    def __init__(self, own: CollectorRegistry, others: Iterable[Sample]) -> None:
        self._own = own
        self._others: defaultdict[str, list[Sample]] = defaultdict(list)
        for sample in others:
            self._others[sample[0]].append(sample)

    def collect(self) -> Iterator[Metric]:
        """Every family of the own registry, with what the others counted."""
        for family in self._own.collect():
            mine = [(family.name, sample.name, sample.labels, sample.value) for sample in family.samples]
            summed = Metric(family.name, family.documentation, family.type, family.unit)
            for _, name, labels, value in added_up([mine, self._others[family.name]]):
                summed.add_sample(name, labels, value)
            yield summed

    def text(self) -> bytes:
        """In the Prometheus text format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
