"""What the engine benchmark feeds the engine: rows of one domain, of many, and of a crowd by popularity."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.arrivals import draw_domains
from benchmarks.bundles import BundleShape, random_bundle
from benchmarks.tags import domain_name
from prompt_store.bundle import read_bundle
from prompted_clip.backbone import Backbone
from prompted_clip.stack import PromptStack
from service.engine.engine import Engine, EngineRow

TOP_K = 5
N_PICTURES = 64
AHEAD = 1
"""Batches that are prepared while others run, as in the service."""

Batch = list[EngineRow]


@dataclass
class Feeder:
    """Makes batches for one engine.

    Attributes:
        engine: that runs them.
        stacks: one per registered domain, the most popular first.
        pictures: uint8 noise [N, 3, H, W]; what a forward costs does not depend on what it sees.
        rng: draws domains and pictures.
    """

    engine: Engine
    stacks: Sequence[PromptStack]
    pictures: NDArray[np.uint8]
    rng: np.random.Generator

    def single(self, n_rows: int) -> Batch:
        """All rows of one domain."""
        return self._batch([self.stacks[0]] * n_rows)

    def mixed(self, n_rows: int, n_domains: int) -> Batch:
        """Rows of as many different domains as there is room for, out of the first so many."""
        order: list[int] = []
        while len(order) < n_rows:
            order += self.rng.permutation(n_domains).tolist()
        return self._batch([self.stacks[index] for index in order[:n_rows]])

    def popular(self, n_rows: int, alpha: float) -> Batch:
        """Rows of all registered domains, drawn by a power law of their rank."""
        drawn = draw_domains(len(self.stacks), n_rows, alpha=alpha, rng=self.rng)
        return self._batch([self.stacks[index] for index in drawn])

    def _batch(self, stacks: Sequence[PromptStack]) -> Batch:
        chosen = self.rng.integers(0, len(self.pictures), len(stacks))
        return [EngineRow(self.pictures[index], stack, TOP_K) for index, stack in zip(chosen, stacks, strict=True)]


async def run_batches(engine: Engine, batches: Sequence[Batch]) -> None:
    """Run batches as the service does: the next one is handed over while one runs.

    Raises:
        RuntimeError: a row was not answered.
    """
    gate = asyncio.Semaphore(engine.num_streams + AHEAD)

    async def one(batch: Batch) -> None:
        async with gate:
            answers = await engine.run(batch)
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        if failed or len(answers) != len(batch):
            msg = f"The engine answered {len(answers) - len(failed)} of {len(batch)} rows."
            raise RuntimeError(msg)

    await asyncio.gather(*(one(batch) for batch in batches))


async def register(
    engine: Engine, backbone: Backbone, n_domains: int, shape: BundleShape, console: Console, *, seed: int = 0
) -> list[PromptStack]:
    """Load random bundles for so many domains into an engine."""
    stacks = []
    with console.status("registering domains") as status:
        for index in range(n_domains):
            name = domain_name(index)
            bundle = read_bundle(random_bundle(backbone, name, 1, shape, seed=seed))
            stacks.append(await engine.load(bundle, 1))
            if index % 50 == 0:
                status.update(f"registering domains: {index} of {n_domains}")
    return stacks


def noise(image_size: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures nobody took: uint8 [64, 3, image_size, image_size]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (N_PICTURES, 3, image_size, image_size), dtype=np.uint8)
