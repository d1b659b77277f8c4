"""What Prometheus is told of the device when it asks: how busy it is, its memory, and what runs on it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

import torch
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.settings import Settings

if TYPE_CHECKING:
    from prompted_clip.backbone import Backbone


class Busy(Protocol):
    """What is asked of the engine."""

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one call was inside."""

    @property
    def n_out_of_memory(self) -> int:
        """Calls that found no memory on the device."""


class DeviceMetrics(Collector):
    """Looks at a device at the moment of collecting.

    Args:
        engine: that owns it.
        device: which one.
    """

    def __init__(self, engine: Busy, device: torch.device) -> None:
        self._engine = engine
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """Counters of the engine, and on a GPU what torch knows of its memory."""
        busy = "Time in which the device had something to do; its rate is the share of time."
        yield CounterMetricFamily("caspl_device_busy_seconds", busy, value=self._engine.busy_s)
        full = "Calls that found no memory on the device."
        yield CounterMetricFamily("caspl_device_out_of_memory", full, value=self._engine.n_out_of_memory)
        memory = GaugeMetricFamily(
            "caspl_device_memory_bytes",
            "Memory of a GPU: all of it, what this process has taken, and what of that is in use. None on a CPU.",
            labels=["kind"],
        )
        if self._device.type == "cuda":
            memory.add_metric(["total"], torch.cuda.get_device_properties(self._device).total_memory)
            memory.add_metric(["reserved"], torch.cuda.memory_reserved(self._device))
            memory.add_metric(["allocated"], torch.cuda.memory_allocated(self._device))
        yield memory


def build_facts(settings: Settings, backbone: Backbone) -> dict[str, str]:
    """Labels of `caspl_build_info`."""
    return {
        "version": package_version(),
        "torch": str(torch.__version__),
        "backbone": backbone.arch,
        "fingerprint": backbone.fingerprint,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": str(backbone.device),
        "preprocess": settings.preprocess,
    }


@cache
def package_version() -> str:
    """The installed version; `0` when run from a source tree that is not installed."""
    try:
        return metadata.version("caspl-serve")
    except metadata.PackageNotFoundError:
        return "0"
