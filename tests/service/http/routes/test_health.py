import asyncio
import threading

import pytest

from service.process import usable_cores
from tests.service.engine.engine_rows import until
from tests.service.fakes import FINGERPRINT, colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


async def test_a_draining_service_is_alive_not_ready_and_still_answers(serve):
    async with serve() as client:
        await client.drain()
        live, ready = await client.get("/livez"), await client.get("/readyz")
        answer = await client.post("/classify/paint", content=picture())
        upload = await client.post("/domains/paint/versions", content=colour_bundle(seed=1))
    assert (live.status_code, ready.status_code, ready.json()["reason"]) == (200, 503, "draining")
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert (upload.status_code, upload.json()["code"]) == (503, "draining")


@pytest.mark.parametrize(
    ("silent_s", "is_alive", "reason"), [(4, True, None), (6, False, None), (31, False, "event_loop_stuck")]
)
async def test_an_event_loop_without_a_turn_for_5_s_is_not_alive_and_after_30_s_not_ready(
    serve, silent_s, is_alive, reason
):
    async with serve() as client:
        client.context._event_loop.beat = lambda: None
        client.context.watchdog.tick(silent_s)
        live, ready = await client.get("/livez"), await client.get("/readyz")
    assert (live.status_code, live.json()["is_alive"]) == (200 if is_alive else 503, is_alive)
    assert (ready.status_code, ready.json()["reason"]) == (503 if reason else 200, reason)


async def test_a_device_without_progress_for_30_s_is_neither_alive_nor_ready(serve, model):
    async with serve() as client:
        model.gate.clear()
        waiting = asyncio.ensure_future(client.post("/classify/paint", content=picture()))
        await until(lambda: client.context.engine.activity.is_busy)
        client.context.engine.activity.tick(31)
        live, ready = await client.get("/livez"), await client.get("/readyz")
        model.gate.set()
        assert (await waiting).status_code == 200
        after = await client.get("/livez")
    assert (live.status_code, ready.status_code, ready.json()["reason"]) == (503, 503, "device_stuck")
    assert after.status_code == 200


async def test_a_store_that_hangs_is_named_while_the_service_stays_ready(serve, store, monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def hang():
        entered.set()
        leave.wait(20)
        return []

    async with serve(store_poll_s=0.01) as client:
        monkeypatch.setattr(store, "domains", hang)
        assert await asyncio.to_thread(entered.wait, 20)
        client.context.watchdog.tick(61)
        client.context._event_loop.beat()
        ready = await client.get("/readyz")
        answer = await client.post("/classify/paint", content=picture())
        leave.set()
    assert (ready.status_code, ready.json()["stuck"]) == (200, ["store"])
    assert answer.status_code == 200


async def test_following_a_store_without_domains_is_progress(serve, store, monkeypatch):
    polls = []
    monkeypatch.setattr(store, "domains", lambda: polls.append(1) or [])
    async with serve(store_poll_s=0.01) as client:
        for _ in range(2):
            n_polls = len(polls)
            await until(lambda before=n_polls: len(polls) > before + 1)
            client.context.watchdog.tick(40)
        assert "store" not in client.context.watchdog.stuck


async def test_an_empty_store_is_ready_to_be_filled(serve, store, monkeypatch):
    monkeypatch.setattr(store, "domains", list)
    async with serve() as client:
        assert (await client.get("/readyz")).json() == {"is_ready": True, "reason": None, "domains": {}}


async def test_metrics_count_requests_batches_images_and_activations(serve):
    async with serve() as client:
        await client.post("/classify/paint", content=picture())
        await client.post("/classify/paint", content=b"%PDF not an image at all")
        await client.get("/nowhere")
        text = (await client.get("/metrics")).text
    assert 'caspl_http_requests_total{code="200",method="POST",route="/classify/{domain}"} 1.0' in text
    assert 'caspl_http_requests_total{code="415",method="POST",route="/classify/{domain}"} 1.0' in text
    assert 'caspl_http_requests_total{code="404",method="GET",route="unmatched"} 1.0' in text
    assert 'caspl_images_total{domain="paint",result="answered"} 1.0' in text
    assert 'caspl_images_total{domain="paint",result="rejected"} 1.0' in text
    assert 'caspl_live_version{domain="paint"} 1.0' in text
    assert 'caspl_errors_total{code="image_format"} 1.0' in text
    assert "caspl_batch_rows_bucket" in text
    assert "caspl_batch_domains_count 1.0" in text, "warm-up rows are no batches"


async def test_images_whose_time_is_up_while_they_are_decoded_are_counted_too(serve):
    async with serve() as client:
        front = client.app.state.context
        decode, is_over = front.decoder.decode, asyncio.Event()

        async def slowly(*arguments, **options):
            await is_over.wait()
            return await decode(*arguments, **options)

        front.decoder.decode = slowly
        late = await client.post("/classify/paint?timeout_ms=50", content=picture())
        is_over.set()
        text = (await client.get("/metrics")).text
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert 'caspl_images_total{domain="paint",result="failed"} 1.0' in text


async def test_metrics_tell_idle_broken_and_stale_domains_from_live_ones(serve, store, model):
    store.add("draft", colour_bundle("draft"))
    added = store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        store.activate("paint", added.version)
        new = store.add("late", colour_bundle("late"))
        store.activate("late", new.version)
        model.fail_load = True
        await client.context.watcher.refresh()
        text = (await client.get("/metrics")).text
    for state, number in (("live", 1), ("stale", 1), ("broken", 1), ("idle", 1)):
        assert f'caspl_domains{{state="{state}"}} {number}.0' in text
    for domain, version in (("ink", 1), ("paint", 1), ("late", 0), ("draft", 0)):
        assert f'caspl_live_version{{domain="{domain}"}} {version}.0' in text


async def test_info_names_the_backbone_its_batches_and_the_limits(serve):
    async with serve(max_batch_rows=24) as client:
        body = (await client.get("/info")).json()
    assert body["batches"] == {"max_rows": 24, "n_concurrent": 1, "n_pipelined": 0, "n_cores": usable_cores()}
    assert body["backbone"]["fingerprint"] == FINGERPRINT
    assert body["limits"]["max_images"] == 16
    assert body["store_is_writable"] is True


async def test_the_openapi_document_describes_every_call_and_its_failures(serve):
    async with serve() as client:
        document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/classify/{domain}"]["post"]["requestBody"]["content"]
    assert set(body) == {"image/jpeg", "image/png", "image/webp", "multipart/form-data", "application/json"}
    assert set(document["paths"]["/domains/{domain}/examples"]) == {"get", "post", "patch", "delete"}
    body = document["paths"]["/domains/{domain}/examples"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    for path, calls in document["paths"].items():
        for call in calls.values():
            kind = "application/json" if path.startswith(("/v1", "/v2")) else "application/problem+json"
            assert list(call["responses"]["default"]["content"]) == [kind]
            assert "422" not in call["responses"]
