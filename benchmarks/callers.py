"""The service without HTTP: callers in this process hand JPEGs to its decoder, its queue and its engine.

What routes do with a request once it is read, and nothing before or after.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import count

from benchmarks.answers import OK, Answer, busy_rate
from prompt_store.store import Store
from prompted_clip.model import PromptedClip
from service.answering import PRIORITIES, Wanted
from service.http.auth import KeyRing
from service.http.routes.bodies import SentImage
from service.http.routes.scoring import Asked, answer
from service.runtime import Runtime, build
from service.settings import Settings

PATIENCE_S = 60.0


async def start(settings: Settings, model: PromptedClip, store: Store) -> Runtime:
    """The parts of a service that has every domain of the store live; to be stopped on the same event loop."""
    runtime = build(settings, model, store, KeyRing(()))
    await runtime.start()
    return runtime


async def closed_rate(
    runtime: Runtime, files: Sequence[bytes], domains: Sequence[str], *, n_callers: int, duration_s: float
) -> float:
    """Images per second of callers who hand over the next image as soon as the last one is answered.

    Args:
        runtime: started.
        files: images, taken in turn.
        domains: who is asked, in turn.
        n_callers: images under way at any time.
        duration_s: for how long new ones are handed over.

    Raises:
        BenchError: the time was too short.
    """
    numbers = count()
    ended: list[Answer] = []
    until_s = time.monotonic() + duration_s

    async def call() -> None:
        while (begin_s := time.monotonic()) < until_s:
            number = next(numbers)
            image, domain = SentImage(files[number % len(files)]), domains[number % len(domains)]
            wanted = Wanted(1, begin_s + PATIENCE_S, PRIORITIES["normal"])
            async with runtime.answerer.pin(domain, None) as pin:
                _, timing = await answer(runtime, Asked("cascade", (), wanted, 0.0), [(pin, image)])
            done_s = time.monotonic()
            ended.append(Answer(begin_s, begin_s, done_s, OK, domain, ran_s=timing.device / 1000))

    async with asyncio.TaskGroup() as callers:
        for _ in range(n_callers):
            callers.create_task(call())
    return busy_rate(ended)
