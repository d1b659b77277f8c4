"""Rows of random pixels, and waiting for a condition."""

import asyncio

from service.engine.engine import EngineRow
from tests.tiny import random_pixels


def rows_of(stacks, top_k=10):
    pixels = random_pixels(len(stacks)).numpy()
    return [EngineRow(image, stack, top_k) for image, stack in zip(pixels, stacks, strict=True)]


async def predictions(engine, rows):
    """The classes of each row, most probable first."""
    return [result.predictions for result in await engine.run(rows)]


async def until(happened):
    for _ in range(2000):
        if happened():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError
