"""Prometheus metrics of the device: busy time, memory, build information."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.settings import Settings

if TYPE_CHECKING:
    from prompted_clip.model import PromptedClip


class DeviceMetrics(Collector):
    """Collects device metrics on each scrape.

    `read` returns busy seconds, the number of out-of-memory errors and the reduced batch size.
    """

    def __init__(self, read: Callable[[], tuple[float, int, int]], device: torch.device) -> None:
        self._read = read
        self._device = device

    def collect(self) -> Iterator[Metric]:
        """Yield the engine's counters and, on a GPU, torch's memory statistics."""
        busy_s, n_out_of_memory, batch_limit = self._read()
        busy = "Time in which the device was busy; its rate is the utilization."
        yield CounterMetricFamily("caspl_device_busy_seconds", busy, value=busy_s)
        full = "Out-of-memory errors on the device."
        yield CounterMetricFamily("caspl_device_out_of_memory", full, value=n_out_of_memory)
        reduced = "Batch size after repeated out-of-memory errors; 0 without a reduction."
        yield GaugeMetricFamily("caspl_device_batch_limit_rows", reduced, value=batch_limit)
        memory = GaugeMetricFamily(
            "caspl_device_memory_bytes",
            "GPU memory: total, reserved by this process, and allocated of that. None on a CPU.",
            labels=["kind"],
        )
        if self._device.type == "cuda":
            memory.add_metric(["total"], torch.cuda.get_device_properties(self._device).total_memory)
            memory.add_metric(["reserved"], torch.cuda.memory_reserved(self._device))
            memory.add_metric(["allocated"], torch.cuda.memory_allocated(self._device))
        yield memory


def build_facts(settings: Settings, model: PromptedClip) -> dict[str, str]:
    """Labels of `caspl_build_info`."""
    backbone = model.backbone
    return {
        "version": package_version(),
        "torch": str(torch.__version__),
        "backbone": backbone.arch,
        "fingerprint": backbone.fingerprint,
        "backend": model.image_tower.backend,
        "dtype": model.image_tower.dtype,
        "device": str(backbone.device),
        "preprocess": settings.preprocess,
    }


@cache
def package_version() -> str:
    """The installed version; `0` if the package is not installed."""
    try:
        return metadata.version("caspl-serve")
    except metadata.PackageNotFoundError:
        return "0"
