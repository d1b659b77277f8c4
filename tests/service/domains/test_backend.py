"""What the process that has the device knows before it does any work."""

import asyncio

import pytest

from tests.service.fakes import picture
from tests.service.http.crowd import crowd

pytestmark = pytest.mark.anyio


async def test_an_image_that_would_be_refused_is_not_decoded_first(serve, model, monkeypatch):
    async with serve(max_queued_rows=3, max_batch_rows=1, max_images=2) as client:
        decoded = []
        decode = client.context.decoder.decode

        async def noted(data, tenant, **options):
            decoded.append(data)
            return await decode(data, tenant, **options)

        monkeypatch.setattr(client.context.decoder, "decode", noted)
        model.gate.clear()
        kept = await crowd(client)
        refused = [await client.post("/classify/paint?labels=a,b", content=picture()) for _ in range(3)]
        model.gate.set()
        answered = await asyncio.gather(*kept)
    assert [answer.status_code for answer in refused] == [429] * 3
    assert {answer.status_code for answer in answered} == {200}
    assert len(decoded) == len(answered)
