"""The service's engine by itself in the benchmark's own process, handed batch after batch."""

import asyncio
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.engine_rows import Feeder, noise, run_batches
from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from prompted_clip.stack import PromptStack
from service.engine.engine import Engine

CPU_SIZES = (1, 2, 4, 8, 16)
BATCHES = 2
"""Handed over together, for each that may run at once: the next one is there when one ends."""
SLICE_S = 3.0
TURNS_PER_SLICE = 3
"""Requests that a client gets answered in a slice, at least: with fewer its two ends would count too much."""


class EngineAlone:
    """Rates of an engine under mixed batches of these domains.

    Args:
        loop: where it runs.
        engine: of the model.
        model: whose stacks are asked.
        domains: the first 64 of them are.
        max_rows: of the largest batch that the service would make on a GPU.
        seed: of the rows.
    """

    def __init__(
        self,
        loop: asyncio.Runner,
        engine: Engine,
        model: PromptedClip,
        domains: Sequence[str],
        *,
        max_rows: int,
        seed: int,
    ) -> None:
        self._loop = loop
        stacks = [load(model, domain) for domain in domains[:64]]
        self._feeder = Feeder(engine, stacks, noise(model.backbone.image_size), np.random.default_rng(seed))
        is_on_cpu = model.backbone.device.type == "cpu"
        self.sizes = CPU_SIZES if is_on_cpu else (1, *(n for n in (8, 32, 64, 128, 256) if n < max_rows), max_rows)

    def rate(self, n_rows: int, duration_s: float) -> float:
        """Images per second in batches of so many."""
        feeder = self._feeder
        n_images, started_s = 0, time.perf_counter()
        while (taken_s := time.perf_counter() - started_s) < duration_s:
            batches = [feeder.mixed(n_rows, len(feeder.stacks)) for _ in range(BATCHES * feeder.engine.num_streams)]
            self._loop.run(run_batches(feeder.engine, batches))
            n_images += len(batches) * n_rows
        return n_images / taken_s


def slice_s(rates: Iterable[float], n_under_way: int) -> float:
    """How long a slice has to be on this machine.

    Args:
        rates: of the engine, in images per second.
        n_under_way: images that all clients together wait for at any time.
    """
    return max(SLICE_S, TURNS_PER_SLICE * n_under_way / max(rates))


def best(rates: Mapping[int, list[float]]) -> list[float]:
    """The rates of the batch size with the highest median: the luckiest of each moment would be nobody's."""
    return max(rates.values(), key=statistics.median)


def load(model: PromptedClip, domain: str) -> PromptStack:
    """A stack like the service's own of that domain."""
    return model.load_stack(read_bundle(random_bundle(model.backbone, domain, 1, BundleShape())), version=1)
