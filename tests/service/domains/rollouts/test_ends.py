"""How a rollout ends, on one server and on several with one store."""

import asyncio
import logging

import pytest

from prompt_store.rollouts import RolloutPlan
from prompt_store.store import Store
from service.domains.rollouts import lifecycle
from tests.service.domains.rollouts.candidates import actions, ask, contrary, equal, shown, start
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True

CANARY = RolloutPlan(version=2, mode="canary", percent=100.0, min_images=1000)


async def test_stopping_gives_all_requests_to_the_live_version(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        await start(client, mode="canary")
        assert (await ask(client))["version"] == 2
        stopped = await client.delete("/domains/paint/rollout")
        again = await client.delete("/domains/paint/rollout")
        assert (await ask(client))["version"] == 1
    assert (stopped.status_code, again.status_code) == (204, 404)
    assert again.json()["code"] == "rollout_not_found"
    assert actions(store, 2) == ["rollout start", "rollout stop"]


@pytest.mark.parametrize(
    ("change", "live"),
    [
        (lambda client: client.put("/domains/paint/live", json={"version": 2}), 2),
        (lambda client: client.put("/domains/paint/live", json={"version": 1}), 1),
        (lambda client: client.post("/domains/paint/rollback"), 3),
        (lambda client: client.post("/domains/paint/versions?activate=true", content=equal(seed=9)), 4),
    ],
    ids=["activation of the candidate", "activation of the live version", "rollback", "upload"],
)
async def test_a_change_of_the_live_version_ends_the_rollout(serve, store, change, live, caplog):
    for seed in (1, 2):
        store.add("paint", equal(seed))
    for version in (3, 1):
        store.activate("paint", version)
    async with serve() as client:
        await start(client, mode="canary")
        with caplog.at_level(logging.INFO):
            changed = await change(client)
        assert changed.status_code in {200, 201}, changed.text
        body = await ask(client)
        assert await shown(client) is None
    assert (body["version"], "is_candidate" in body) == (live, False)
    assert store.live("paint").rollout is None
    assert "rollout.ended" in [record.message for record in caplog.records]


async def test_a_candidate_cannot_be_deleted_while_its_rollout_runs(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        await start(client)
        refused = await client.delete("/domains/paint/versions/2")
        await client.delete("/domains/paint/rollout")
        deleted = await client.delete("/domains/paint/versions/2")
    assert (refused.status_code, refused.json()["code"]) == (409, "rollout_running")
    assert deleted.status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"version": 9}, 404, "version_not_found"),
        ({"version": 1}, 409, "version_live"),
        ({"version": 2, "percent": 0}, 422, "request_invalid"),
        ({"version": 2, "percent": 101}, 422, "request_invalid"),
        ({"version": 2, "mode": "both"}, 422, "request_invalid"),
        ({"version": 2, "max_disagreement": float("nan")}, 422, "request_invalid"),
        ({"version": 2, "min_images": 0}, 422, "request_invalid"),
        ({"version": 2, "threshold": 0.1}, 422, "request_invalid"),
        ({}, 422, "request_invalid"),
    ],
    ids=str,
)
async def test_an_impossible_rollout_is_refused_and_nothing_starts(serve, store, body, status, code):
    store.add("paint", equal())
    async with serve() as client:
        text = str(body).replace("'", '"').replace("nan", "NaN")
        headers = {"Content-Type": "application/json"}
        refused = await client.post("/domains/paint/rollout", content=text, headers=headers)
        assert await shown(client) is None
    assert (refused.status_code, refused.json()["code"]) == (status, code)
    assert store.live("paint").rollout is None


async def test_a_second_rollout_and_a_domain_without_a_live_version_are_refused(serve, store):
    store.add("paint", equal())
    store.add("paint", equal(2))
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        await start(client)
        second = await client.post("/domains/paint/rollout", json={"version": 3})
        draft = await client.post("/domains/draft/rollout", json={"version": 1})
        nowhere = await client.post("/domains/nowhere/rollout", json={"version": 3})
    assert (second.status_code, second.json()["code"]) == (409, "rollout_running")
    assert (draft.status_code, draft.json()["code"]) == (404, "domain_not_live")
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "domain_not_found")


async def test_a_restart_keeps_the_rollout_and_counts_anew(serve, store):
    store.add("paint", equal())
    async with serve() as client:
        before = await start(client, mode="canary", percent=100, min_images=1000)
        await ask(client)
    async with serve() as client:
        after = await shown(client)
        body = await ask(client)
    assert after == before
    assert (body["version"], body["is_candidate"]) == (2, True)


async def test_servers_of_one_store_agree_on_start_decision_and_end(serve, store, caplog):
    store.add("paint", contrary())
    async with serve() as first, serve() as second:
        await start(first, mode="canary")
        await second.context.watcher.refresh()
        assert (await ask(second))["version"] == 2
        with caplog.at_level(logging.INFO):
            for number in range(10):
                await ask(first, number)
            await until(lambda: first.context.table.running("paint") is None)
            await second.context.watcher.refresh()
        assert await shown(second) is None
        assert (await ask(second))["version"] == 1
    assert actions(store) == ["publish", "rollout start", "rollout rollback"]
    assert [record.message for record in caplog.records].count("rollout.rolled_back") == 1


async def test_two_servers_that_decide_at_the_same_time_record_one_end(serve, store):
    store.add("paint", contrary())
    async with serve() as first, serve() as second:
        await start(first, min_images=5)
        await second.context.watcher.refresh()
        for number in range(5):
            await asyncio.gather(ask(first, number), ask(second, number))
        for server in (first, second):
            await until(lambda server=server: server.context.table.running("paint") is None)
    assert actions(store) == ["publish", "rollout start", "rollout rollback"]


async def test_a_command_of_another_process_starts_and_ends_a_rollout(serve, store):
    store.add("paint", equal())
    other = Store.open(store.root)
    async with serve() as client:
        started = other.start_rollout("paint", CANARY).rollout
        await client.context.watcher.refresh()
        assert (await ask(client))["is_candidate"]
        other.end_rollout("paint", started.seq)
        await client.context.watcher.refresh()
        assert "is_candidate" not in await ask(client)


async def test_a_candidate_that_cannot_run_here_leaves_the_live_version_alone(serve, store, model, caplog):
    store.add("paint", equal())
    other = Store.open(store.root)
    async with serve() as client:
        model.fail_load = True
        other.start_rollout("paint", CANARY)
        for _ in range(3):
            await client.context.watcher.refresh()
        body = await ask(client)
        summary = (await client.get("/domains/paint")).json()
        unavailable = await client.get("/domains/paint/rollout")
        stopped = await client.delete("/domains/paint/rollout")
    assert (body["version"], summary["state"], summary["candidate"]) == (1, "live", None)
    assert (unavailable.status_code, unavailable.json()["code"]) == (503, "domain_unavailable")
    assert [record.message for record in caplog.records].count("rollout.unavailable") == 1
    assert stopped.status_code == 204
    assert store.live("paint").rollout is None


async def test_a_rollout_that_could_not_run_here_and_ended_elsewhere_is_gone(serve, store, model):
    store.add("paint", equal())
    other = Store.open(store.root)
    async with serve() as client:
        model.fail_load = True
        other.start_rollout("paint", CANARY)
        await client.context.watcher.refresh()
        assert (await client.get("/domains/paint/rollout")).status_code == 503
        other.end_rollout("paint")
        await client.context.watcher.refresh()
        gone = await client.get("/domains/paint/rollout")
    assert (gone.status_code, gone.json()["code"]) == (404, "rollout_not_found")


async def test_an_end_that_cannot_be_stored_yet_stops_the_candidate_at_once(serve, store, monkeypatch, caplog):
    store.add("paint", contrary())
    monkeypatch.setattr(lifecycle, "RETRY_S", 0.05)
    end, failures = store.end_rollout, [OSError("disk"), OSError("disk")]

    def failing(*args, **options):
        if failures:
            raise failures.pop()
        return end(*args, **options)

    async with serve() as client:
        monkeypatch.setattr(client.context.store, "end_rollout", failing)
        await start(client, mode="canary", min_images=1)
        assert (await ask(client))["version"] == 2
        assert (await ask(client))["version"] == 1
        await until(lambda: client.context.table.running("paint") is None)
    assert actions(store, 2) == ["rollout start", "rollout rollback"]
    assert [record.message for record in caplog.records].count("rollout.not_ended") == 1
