"""Candidates for the domain `paint`, a model that treats one version differently, and requests."""

import asyncio
import threading

import numpy as np

from prompt_store.bundle import read_bundle, write_bundle
from prompt_store.manifest import Provenance
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle, picture

COLOURS = ("red", "green", "blue")


def equal(seed=1):
    """A candidate with the live version's answers."""
    return colour_bundle(seed=seed)


def contrary():
    """A candidate that answers another class for every image."""
    bundle = read_bundle(colour_bundle())
    made = Provenance(method="none", phase="boost", seed=2, code_version="test", created="2026-01-01T00:00:00Z")
    features = np.roll(bundle.tensors["text.features"], 1, axis=0)
    manifest = bundle.manifest.model_copy(update={"provenance": made})
    return write_bundle(manifest, {**bundle.tensors, "text.features": features})


def unsure():
    """A candidate with the same classes and much lower probabilities."""
    return colour_bundle(logit_scale=1.0)


class Treated:
    """Makes a model fail for one version, or wait before it until `gate` is set; `n_rows` counts rows by digest."""

    def __init__(self, model):
        self.fails, self.waits, self.n_rows = None, None, {}
        self.gate = threading.Event()
        self._rank = model.rank
        model.rank = self

    def __call__(self, pixels, stacks, *args, **options):
        digests = [stack.digest for stack in stacks]
        if self.fails in digests:
            raise RuntimeError("this version fails")
        if self.waits in digests:
            self.gate.wait(20)
        for digest in digests:
            self.n_rows[digest] = self.n_rows.get(digest, 0) + 1
        return self._rank(pixels, stacks, *args, **options)


async def start(client, **plan):
    """Start a rollout of version 2 for all requests."""
    body = {"version": 2, "percent": 100, "min_images": 10} | plan
    started = await client.post("/domains/paint/rollout", json=body)
    assert started.status_code == 201, started.text
    return started.json()


async def shown(client):
    answer = await client.get("/domains/paint/rollout")
    return answer.json() if answer.status_code == 200 else None


async def ask(client, number=0, **options):
    """One classify request for an image of one of three colours; waits until its comparison has ended."""
    headers = {"X-Request-Id": f"request-{number}"} | options.pop("headers", {})
    answer = await client.post(
        options.pop("path", "/classify/paint"),
        content=picture(COLOURS[number % 3]),
        headers=headers,
        params=options,
    )
    assert answer.status_code == 200, answer.text
    await settled(client)
    return answer.json()


async def together(client, model, n, path="/classify/paint"):
    """The responses to requests 0 to n - 1: the first one runs alone, the others are one batch behind it."""
    path += ("&" if "?" in path else "?") + "timeout_ms=30000"  # a loaded machine queues them slowly

    def post(number):
        headers = {"X-Request-Id": f"request-{number}"}
        return asyncio.ensure_future(client.post(path, content=picture(COLOURS[number % 3]), headers=headers))

    model.gate.clear()
    n_begun = model.n_begun
    first = post(0)
    await until(lambda: model.n_begun > n_begun)
    others = [post(number) for number in range(1, n)]
    await until(lambda: client.context.batcher.n_queued == n - 1)
    model.gate.set()
    answers = await asyncio.gather(first, *others)
    await settled(client)
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json() for answer in answers]


async def settled(client):
    """No comparison runs, and the device is idle."""
    comparisons, batcher = client.context.backend.comparisons, client.context.batcher
    await until(lambda: (comparisons._task is None or comparisons._task.done()) and batcher.is_idle)
    await asyncio.sleep(0)


def actions(store, n=3):
    return [entry.action for entry in store.history("paint")[-n:]]
