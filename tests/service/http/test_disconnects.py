"""Clients that leave: their work is dropped wherever it waits, and the others are answered."""

import asyncio
import threading

import pytest

from service.images.decoder import open_image
from tests.service.engine.engine_rows import until
from tests.service.fakes import picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

N_REQUESTS = 1000
N_BATCH_ROWS = 16


class Visitor:
    """A client that sends one picture, or another body, and can leave."""

    def __init__(self, app, path="/classify/paint", *, body=None, headers=()):
        self.status = None
        self._messages = asyncio.Queue()
        self._messages.put_nowait({"type": "http.request", "body": body or picture(), "more_body": False})
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
            "headers": list(headers), "http_version": "1.1", "scheme": "http", "server": ("test", 80),
            "client": ("127.0.0.1", 1),
            "root_path": "", "asgi": {"version": "3.0"}, "query_string": b"timeout_ms=30000",
        }  # fmt: skip
        self.call = asyncio.ensure_future(app(scope, self._messages.get, self._send))

    async def _send(self, message):
        self.status = message.get("status", self.status)

    def leave(self):
        self._messages.put_nowait({"type": "http.disconnect"})


async def test_of_1000_queued_requests_the_500_whose_clients_leave_never_reach_the_device(serve, model):
    limits = {"max_queued_rows": 1100, "max_open_requests": 1100, "max_decoding_images": 1100, "default_timeout_s": 30}
    async with serve(max_batch_rows=N_BATCH_ROWS, **limits) as client:
        batcher = client.context.batcher
        model.gate.clear()
        model.batches.clear()
        visitors = [Visitor(client.app) for _ in range(N_REQUESTS)]
        await until(lambda: batcher.n_queued >= N_REQUESTS - N_BATCH_ROWS and model.n_begun)
        n_queued = batcher.n_queued
        leaving = visitors[::2]
        for visitor in leaving:
            visitor.leave()
        await asyncio.wait_for(asyncio.gather(*(visitor.call for visitor in leaving)), 30)
        await until(lambda: batcher.n_queued <= n_queued - len(leaving) + N_BATCH_ROWS)
        model.gate.set()
        await asyncio.wait_for(asyncio.gather(*(visitor.call for visitor in visitors)), 30)
    assert {visitor.status for visitor in leaving} == {499}
    assert {visitor.status for visitor in visitors[1::2]} == {200}
    assert sum(map(len, model.batches)) <= N_REQUESTS - len(leaving) + N_BATCH_ROWS


async def test_a_picture_that_waits_to_be_decoded_is_not_decoded_once_its_client_has_left(serve, monkeypatch):
    decoded, entered, gate = [], threading.Event(), threading.Event()

    def slowly(data, *given):
        decoded.append(data)
        entered.set()
        gate.wait(20)
        return open_image(data, *given)

    monkeypatch.setattr("service.images.decoder.open_image", slowly)
    async with serve(n_decode_threads=1) as client:
        first = Visitor(client.app)
        assert await asyncio.to_thread(entered.wait, 20)
        waiting = [Visitor(client.app) for _ in range(3)]
        await asyncio.sleep(0.1)
        for visitor in waiting[:2]:
            visitor.leave()
        await asyncio.wait_for(asyncio.gather(*(visitor.call for visitor in waiting[:2])), 20)
        gate.set()
        await asyncio.wait_for(asyncio.gather(first.call, waiting[2].call), 20)
    assert [visitor.status for visitor in (first, *waiting)] == [200, 499, 499, 200]
    assert len(decoded) == 2
