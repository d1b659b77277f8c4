"""Overload: requests that are refused or late, and requests that are not affected."""

import asyncio
import io
import threading

import pytest
from PIL import Image

from service.images.decoder import open_image
from tests.service.fakes import colour_bundle, picture
from tests.service.http.crowd import WatchedBody, crowd

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


async def test_a_deadline_that_passes_is_504_and_the_service_goes_on(serve, model):
    async with serve() as client:
        model.gate.clear()
        late = await client.post("/classify/paint?timeout_ms=100", content=picture())
        model.gate.set()
        fine = await client.post("/classify/paint", content=picture())
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert fine.status_code == 200


async def test_a_full_queue_is_429_with_retry_after(serve, model):
    async with serve(max_queued_rows=2, max_batch_rows=1, max_images=2) as client:
        model.gate.clear()
        calls = [asyncio.ensure_future(client.post("/classify/paint", content=picture())) for _ in range(8)]
        done, waiting = await asyncio.wait(calls, timeout=0.5)
        model.gate.set()
        kept = await asyncio.gather(*waiting)
    refused = [call.result() for call in done]
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in kept} == {200}
    assert len(kept) + len(refused) == 8
    assert len(kept) == 2


async def test_requests_that_would_find_the_queue_full_are_refused_before_they_are_decoded(serve, model, monkeypatch):
    decoded = []
    monkeypatch.setattr("service.images.decoder.open_image", lambda *args: decoded.append(1) or open_image(*args))
    async with serve(max_queued_rows=4, max_batch_rows=1, max_images=2, max_open_requests=256) as client:
        model.gate.clear()
        calls = [asyncio.ensure_future(client.post("/classify/paint", content=picture())) for _ in range(20)]
        _, waiting = await asyncio.wait(calls, timeout=0.5)
        model.gate.set()
        await asyncio.gather(*calls)
    assert len(waiting) == len(decoded) == 4


@pytest.mark.parametrize(("max_microbatch", "largest"), [(3, 3), (None, 8)])
async def test_no_batch_is_larger_than_what_the_model_takes_together(serve, model, max_microbatch, largest):
    model.max_microbatch = max_microbatch
    async with serve(max_batch_rows=8) as client:
        model.gate.clear()
        calls = [asyncio.ensure_future(client.post("/classify/paint", content=picture())) for _ in range(20)]
        await asyncio.sleep(0.5)
        model.gate.set()
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert max(map(len, model.batches)) == largest


async def test_a_request_too_many_is_429_before_its_body_is_read_and_places_come_free_again(serve, model):
    body = WatchedBody()
    async with serve(max_open_requests=2) as client:
        model.gate.clear()
        calls = [asyncio.ensure_future(client.post("/classify/paint", content=picture())) for _ in range(2)]
        await asyncio.wait(calls, timeout=0.3)
        refused = await client.post("/classify/paint", content=body)
        assert (await client.get("/readyz")).status_code == 200
        model.gate.set()
        kept = await asyncio.gather(*calls)
        after = [await client.post("/classify/paint", content=picture()) for _ in range(3)]
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert body.n_read == 0
    assert {answer.status_code for answer in (*kept, *after)} == {200}


@pytest.mark.parametrize(
    ("limits", "path", "route"),
    [
        ({"max_queued_rows": 3, "max_images": 2}, "/classify/paint", "/classify/{domain}"),
        ({"max_open_requests": 3}, "/classify/paint", "/classify/{domain}"),
    ],
)
async def test_a_refusal_counts_with_its_route(serve, model, limits, path, route):
    async with serve(max_batch_rows=1, **limits) as client:
        model.gate.clear()
        kept = await crowd(client)
        refused = await client.post(path, content=picture())
        metrics = (await client.get("/metrics")).text
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 3
    assert refused.status_code == 429
    assert f'caspl_http_requests_total{{code="429",method="POST",route="{route}"}} 1.0' in metrics


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/classify/nowhere", 404, "domain_not_found"),
        ("/classify/idle", 404, "domain_not_live"),
        ("/classify/paint?priority=urgent", 422, "request_invalid"),
    ],
)
async def test_a_request_that_could_never_be_answered_is_not_told_to_come_back(serve, model, store, path, status, code):
    store.add("idle", colour_bundle("idle"))
    async with serve(max_queued_rows=4, max_batch_rows=1, max_images=2) as client:
        model.gate.clear()
        kept = await crowd(client)
        answer = await client.post(path, content=picture())
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 3
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_who_would_be_refused_with_one_image_is_refused_before_the_body_is_read(serve, model):
    body = WatchedBody()
    async with serve(max_queued_rows=3, max_batch_rows=1, max_images=2) as client:
        model.gate.clear()
        kept = await crowd(client)
        refused = await client.post("/classify/paint", content=body)
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 3
        n_read = body.n_read
        after = await client.post("/classify/paint", content=body)
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (after.status_code, n_read, body.n_read) == (200, 0, 1)


async def test_too_many_images_in_decoding_are_429(serve, monkeypatch):
    entered, gate = threading.Event(), threading.Event()

    def slowly(*given):
        entered.set()
        gate.wait(10)
        return open_image(*given)

    monkeypatch.setattr("service.images.decoder.open_image", slowly)
    files = [("images", (f"{n}.png", picture())) for n in range(2)]
    async with serve(max_decoding_images=2, max_images=2) as client:
        first = asyncio.ensure_future(client.post("/classify/paint", files=files))
        await asyncio.to_thread(entered.wait, 10)
        refused = await client.post("/classify/paint", files=files)
        gate.set()
        served = await first
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert served.status_code == 200


async def test_a_flood_of_large_images_in_one_domain_neither_refuses_nor_delays_another_domain(serve, monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (1_000, 1_000)).save(file, "WEBP", lossless=True)
    flood = [("images", (f"{n}.webp", file.getvalue())) for n in range(16)]
    entered, gate = threading.Event(), threading.Event()

    def held_if_large(data, *given):
        if data == file.getvalue():
            entered.set()
            gate.wait(30)
        return open_image(data, *given)

    monkeypatch.setattr("service.images.decoder.open_image", held_if_large)
    async with serve(max_decoding_images=32, n_decode_threads=1, max_timeout_s=60, default_timeout_s=60) as client:
        floods = [asyncio.ensure_future(client.post("/classify/ink", files=flood)) for _ in range(5)]
        await asyncio.to_thread(entered.wait, 30)
        answers = [await client.post("/classify/paint", content=picture()) for _ in range(10)]
        gate.set()
        flooded = await asyncio.gather(*floods)
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.status_code for answer in flooded) == [200, 200, 429, 429, 429]


async def test_a_crowd_of_label_sets_is_refused_leaves_in_time_and_does_not_hold_up_the_others(serve, model):
    making, begun, letting = [], threading.Event(), threading.Event()
    with_labels = model.with_labels

    def slowly(stack, labels):
        making.append(labels)
        begun.set()
        letting.wait(10)
        return with_labels(stack, labels)

    model.with_labels = slowly
    async with serve(max_waiting_stacks=3) as client:

        def ask(n):
            query = {"labels": f"red,x{n}", "timeout_ms": 2000}
            return asyncio.ensure_future(client.post("/classify/paint", content=picture(), params=query))

        asked = [ask(0)]
        await asyncio.to_thread(begun.wait, 10)
        asked += [ask(n) for n in range(1, 12)]
        done = await asyncio.gather(*asked)
        letting.set()
        plain = await client.post("/classify/paint", content=picture())
        again = await client.post("/classify/paint?labels=red,x0", content=picture())
    found = sorted((answer.status_code, answer.json()["code"]) for answer in done)
    assert found == [(429, "overloaded")] * 8 + [(504, "deadline_exceeded")] * 4
    assert all("retry-after" in answer.headers for answer in done if answer.status_code == 429)
    assert (plain.status_code, again.status_code) == (200, 200)
    assert len(making) == 1, "what nobody waits for any more is not made; what was begun is kept"


async def test_loading_an_older_version_counts_towards_the_deadline(serve, store, model):
    added = store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        model.gate.clear()
        url = f"/classify/paint?version={added.version}&timeout_ms=200"
        late = await asyncio.wait_for(client.post(url, content=picture()), 5)
        model.gate.set()
        fine = await client.post(f"/classify/paint?version={added.version}", content=picture())
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert fine.json()["version"] == added.version


async def test_running_out_of_memory_while_decoding_is_not_the_images_fault(serve, monkeypatch):
    def out_of_memory(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr("service.images.decoder.Image.open", out_of_memory)
    async with serve() as client:
        answer = await client.post("/classify/paint", content=picture("red"))
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"]
