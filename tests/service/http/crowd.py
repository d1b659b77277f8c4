"""As many requests as a small service accepts at once, and bodies that count how often they are read."""

import asyncio

from tests.service.fakes import picture


async def crowd(client):
    """As many requests as there is room for where one image runs and two may be queued."""
    kept = []
    for _ in range(3):
        kept.append(asyncio.ensure_future(client.post("/classify/paint", content=picture())))
        await asyncio.sleep(0.1)
    return kept


class WatchedBody:
    """A picture's bytes as a body, and how often they were read."""

    n_read = 0

    async def __aiter__(self):
        self.n_read += 1
        yield picture()
