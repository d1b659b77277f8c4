"""Rollouts over HTTP: the answering version, the comparisons and the decision."""

import asyncio
import base64
import logging

import pytest

from prompt_store.manifest import Calibration
from tests.service.domains.rollouts.candidates import (
    Treated,
    actions,
    ask,
    contrary,
    equal,
    settled,
    shown,
    start,
    together,
    unsure,
)
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_a_canary_answers_its_share_of_the_requests_and_is_marked_in_these_responses(serve, store):
    candidate = store.add("paint", equal())
    async with serve() as client:
        started = await start(client, mode="canary", percent=30, min_images=1000)
        answers = [await ask(client, number) for number in range(200)]
        again = [await ask(client, number) for number in range(50)]
    assert (started["version"], started["live_version"], started["mode"]) == (2, 1, "canary")
    by_candidate = [body for body in answers if body.get("is_candidate")]
    assert 35 <= len(by_candidate) <= 85  # 60 expected, standard deviation 6.5
    assert {(body["version"], body["digest"]) for body in by_candidate} == {(2, candidate.digest)}
    assert {body["version"] for body in answers if "is_candidate" not in body} == {1}
    assert [body["version"] for body in again] == [body["version"] for body in answers[:50]]


async def test_a_shadow_answers_nothing_and_is_compared(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        await start(client, min_images=1000)
        answers = [await ask(client, number) for number in range(12)]
        found = await shown(client)
        listed = (await client.get("/domains/paint")).json()
        metrics = (await client.get("/metrics")).text
    assert {(body["version"], "is_candidate" in body) for body in answers} == {(1, False)}
    assert (found["n_compared"], found["n_disagreed"], found["n_failed"], found["n_dropped"]) == (12, 0, 0, 0)
    assert (found["disagreement"], found["confidence_shift"], found["confidence_shift_error"]) == (0, 0, 0)
    assert listed["candidate"] == 2
    assert 'caspl_rollout_images_total{domain="paint",result="agreed"} 12.0' in metrics
    assert 'caspl_rollout_running{domain="paint",mode="shadow",version="2"} 1.0' in metrics


@pytest.mark.parametrize("mode", ["shadow", "canary"])
async def test_a_candidate_that_disagrees_is_rolled_back_once(serve, store, mode, caplog):
    store.add("paint", contrary())
    async with serve() as client:
        with caplog.at_level(logging.INFO):
            await start(client, mode=mode)
            answers = [await ask(client, number) for number in range(10)]
            await until(lambda: client.context.table.running("paint") is None)
            later = [await ask(client, number) for number in range(10)]
        metrics = (await client.get("/metrics")).text
        gone = await client.get("/domains/paint/rollout")
    assert {body["version"] for body in answers} == ({2} if mode == "canary" else {1})
    assert {body["version"] for body in later} == {1}
    assert actions(store) == ["publish", "rollout start", "rollout rollback"]
    assert "100.0% of 10 images disagree" in store.history("paint")[-1].detail
    assert [record.message for record in caplog.records].count("rollout.rolled_back") == 1
    assert 'caspl_rollouts_total{domain="paint",result="rolled_back"} 1.0' in metrics
    assert "caspl_rollout_running{" not in metrics
    assert (gone.status_code, gone.json()["code"]) == (404, "rollout_not_found")
    assert store.audit().rows[-1].action == "rollout rollback"


async def test_concurrent_comparisons_that_exceed_a_threshold_end_the_rollout_once(serve, store):
    store.add("paint", contrary())
    async with serve() as client:
        await start(client, mode="canary", min_images=1)
        await asyncio.gather(*(client.post("/classify/paint", content=picture()) for _ in range(20)))
        await until(lambda: client.context.table.running("paint") is None)
        await settled(client)
    assert actions(store) == ["publish", "rollout start", "rollout rollback"]


async def test_a_candidate_with_other_confidence_is_rolled_back(serve, store):
    store.add("paint", unsure())
    async with serve() as client:
        await start(client, max_confidence_shift=0.2)
        for number in range(10):
            await ask(client, number)
        await until(lambda: client.context.table.running("paint") is None)
    assert "confidence shift -0.424" in store.history("paint")[-1].detail


async def test_a_good_candidate_goes_live_by_itself_if_the_plan_has_that(serve, store, caplog):
    store.add("paint", equal())
    async with serve() as client:
        with caplog.at_level(logging.INFO):
            await start(client, then="activate")
            for number in range(10):
                await ask(client, number)
            await until(lambda: client.context.table.live("paint").version == 2)
        after = await ask(client)
        metrics = (await client.get("/metrics")).text
    assert (after["version"], "is_candidate" in after) == (2, False)
    assert actions(store) == ["publish", "rollout start", "activate"]
    assert store.history("paint")[-1].detail == "0.0% of 10 images disagree"
    assert "rollout.activated" in [record.message for record in caplog.records]
    assert 'caspl_rollouts_total{domain="paint",result="activated"} 1.0' in metrics


async def test_a_candidate_on_hold_goes_on_after_its_fewest_images(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        await start(client)
        for number in range(15):
            await ask(client, number)
        assert (await shown(client))["n_compared"] == 15
    assert actions(store, 1) == ["rollout start"]


async def test_a_shadow_that_fails_never_fails_an_answer_and_is_rolled_back(serve, store, model):
    digest = store.add("paint", equal()).digest
    treated = Treated(model)
    async with serve() as client:
        await start(client)
        treated.fails = digest
        answers = [await ask(client, number) for number in range(10)]
        await until(lambda: client.context.table.running("paint") is None)
    assert {body["version"] for body in answers} == {1}
    assert "10 failed" in store.history("paint")[-1].detail


async def test_a_canary_that_fails_is_answered_by_the_live_version_and_rolled_back(serve, store, model):
    digest = store.add("paint", equal()).digest
    treated = Treated(model)
    async with serve() as client:
        await start(client, mode="canary")
        treated.fails = digest
        answers = [await ask(client, number) for number in range(10)]
        await until(lambda: client.context.table.running("paint") is None)
    assert {(body["version"], "is_candidate" in body) for body in answers} == {(1, False)}
    assert "10 failed" in store.history("paint")[-1].detail


async def test_a_request_that_outlasts_its_rollout_leaves_no_figures_of_it(serve, store, model):
    digest = store.add("paint", equal()).digest
    treated = Treated(model)
    async with serve() as client:
        await start(client, mode="canary", min_images=1000)
        await ask(client)
        before = (await client.get("/metrics")).text
        treated.waits = digest
        request = asyncio.ensure_future(client.post("/classify/paint", content=picture()))
        await until(lambda: not client.context.batcher.is_idle)
        await client.delete("/domains/paint/rollout")
        treated.fails = digest
        treated.gate.set()
        answer = await request
        after = (await client.get("/metrics")).text
    assert answer.json()["version"] == 1
    assert 'caspl_rollout_confidence_shift{domain="paint"}' in before
    assert "caspl_rollout_confidence_shift{" not in after


async def test_a_comparison_that_fails_unexpectedly_is_in_the_log(serve, store, monkeypatch, caplog):
    store.add("paint", equal())
    async with serve() as client:
        await start(client)
        comparisons = client.context.backend.comparisons
        monkeypatch.setattr(comparisons, "_decide", lambda running: 1 / 0)
        body = await ask(client)
        await settled(client)
    assert body["version"] == 1
    (record,) = (record for record in caplog.records if record.message == "rollout.comparison_failed")
    assert record.exc_info[0] is ZeroDivisionError


async def test_an_answer_does_not_wait_for_its_comparison(serve, store, model):
    digest = store.add("paint", equal()).digest
    treated = Treated(model)
    async with serve() as client:
        await start(client)
        treated.waits = digest
        answer = await asyncio.wait_for(client.post("/classify/paint", content=picture()), 10)
        assert (await shown(client))["n_compared"] == 0
        treated.gate.set()
        await settled(client)
        assert (await shown(client))["n_compared"] == 1
    assert answer.json()["version"] == 1


async def test_a_busy_device_compares_nothing_and_counts_that(serve, store, model):
    digest = store.add("paint", equal()).digest
    treated = Treated(model)
    async with serve() as client:
        await start(client, min_images=1000)
        answers = await together(client, model, 20)
        found = await shown(client)
    assert {body["version"] for body in answers} == {1}
    assert found["n_compared"] + found["n_dropped"] == 20
    assert found["n_dropped"] >= 18
    assert treated.n_rows[digest] == found["n_compared"] + 1, "one row is the smoke test"


async def test_a_batch_of_both_versions_gives_each_image_its_answer_alone(serve, store, model):
    store.add("paint", contrary())
    async with serve() as client:
        await start(client, mode="canary", percent=50, min_images=1000)
        alone = {
            (version, number % 3): (await ask(client, number, version=version, top_k=3))["results"][0]["predictions"]
            for version in (1, 2)
            for number in range(3)
        }
        answers = await together(client, model, 30, "/classify/paint?top_k=3")
    assert max(map(len, model.batches)) == 29
    assert {body["version"] for body in answers} == {1, 2}
    for number, body in enumerate(answers):
        assert body["results"][0]["predictions"] == alone[body["version"], number % 3]


@pytest.mark.parametrize(
    "options",
    [{"version": 1}, {"labels": "red,white"}, {"stack": "boost"}, {"return": "embedding"}],
    ids=lambda options: next(iter(options)),
)
async def test_requests_that_are_not_for_the_live_versions_own_classes_take_no_part(serve, store, options):
    store.add("paint", equal())
    async with serve() as client:
        await start(client, mode="canary")
        body = await ask(client, **options)
        found = await shown(client)
    assert (body["version"], "is_candidate" in body) == (1, False)
    assert found["n_compared"] + found["n_dropped"] == 0


async def test_a_request_with_the_live_digest_is_answered_by_the_live_version(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        await start(client, mode="canary")
        body = await ask(client, headers={"If-Bundle-Digest": store.live("paint").digest})
    assert (body["version"], "is_candidate" in body) == (1, False)


async def test_a_mixed_request_and_the_inference_protocol_show_the_candidate_too(serve, store):
    store.add("paint", equal())
    data = [base64.b64encode(picture("red")).decode()]
    inputs = [{"name": "images", "shape": [1], "datatype": "BYTES", "data": data}]
    async with serve() as client:
        await start(client, mode="canary")
        mixed = await client.post("/classify", files=[("ink", picture("blue")), ("paint", picture("red"))])
        await settled(client)
        infer = await client.post("/v2/models/paint/infer", json={"inputs": inputs})
    assert [(one["version"], one.get("is_candidate")) for one in mixed.json()["results"]] == [(1, None), (2, True)]
    assert infer.json()["model_version"] == "2", infer.text
    assert infer.json()["parameters"]["is_candidate"] == "true"


async def test_images_that_the_candidate_answered_are_not_kept_as_uncertain_ones(serve, store):
    store.add("paint", equal())

    async def n_offered(client):
        await asyncio.to_thread(client.app.state.context.uncertain._thread.submit(lambda: None).result)
        return len(client.context.examples.page("paint"))

    async with serve(keep_uncertain=5) as client:
        await start(client, mode="canary")
        assert (await ask(client))["version"] == 2
        assert await n_offered(client) == 0
        await client.delete("/domains/paint/rollout")
        assert (await ask(client))["version"] == 1
        assert await n_offered(client) == 1


@pytest.mark.parametrize(
    ("rates", "answers"), [({"0.05": 0.9}, True), ({"0.01": 0.9}, False), ({}, False)], ids=["rate", "another", "none"]
)
async def test_a_canary_answers_with_abstention_only_at_a_rate_that_the_candidate_has(serve, store, rates, answers):
    def calibrated(seed, abstain):
        return store.add("paint", colour_bundle(seed=seed, calibration=Calibration(temperature=1.0, abstain=abstain)))

    live = calibrated(3, {"0.05": 0.5}).version
    store.activate("paint", live)
    candidate = calibrated(4, rates).version
    async with serve() as client:
        await start(client, mode="canary", version=candidate)
        body = await ask(client, abstain=0.05)
    assert body["version"] == (candidate if answers else live)
    assert body["results"][0]["label"] == "red"
