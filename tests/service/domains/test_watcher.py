"""The live table follows the store: at start, and after changes by other processes."""

import asyncio

import pytest
import torch

from prompt_store.errors import StoreReadOnlyError
from prompt_store.store import Store
from service.errors import InferenceFailedError
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_what_is_live_at_start_is_tried_out_before_the_first_request(serve, model):
    async with serve():
        assert sorted(domain for batch in model.batches for domain in batch) == ["ink", "paint"]


async def test_what_there_is_no_time_for_at_start_answers_at_once_and_is_tried_out_beside_requests(serve, model):
    model.gate.clear()
    async with serve(warmup_s=0) as client:
        assert (await client.get("/readyz")).json()["domains"] == {"ink": "live", "paint": "live"}
        assert model.batches == []
        model.gate.set()
        await until(lambda: len(model.batches) == 2)
        assert (await client.post("/classify/paint", content=picture())).status_code == 200


async def test_a_stack_that_fails_when_it_is_tried_out_late_is_taken_off_and_comes_back_once_it_answers(serve, model):
    model.fail_with = InferenceFailedError("not finite")
    async with serve(warmup_s=0) as client:
        table = client.context.table.states
        await until(lambda: any(state.error for state in client.context.table.states.values()))
        (domain,) = (name for name, state in client.context.table.states.items() if state.error)
        broken = await client.post(f"/classify/{domain}", content=picture())
        shown = (await client.get(f"/domains/{domain}")).json()
        again = await client.put(f"/domains/{domain}/live", json={"version": 1})
        fine = [await client.post(f"/classify/{name}", content=picture()) for name in table]
    assert (broken.status_code, broken.json()["code"]) == (503, "domain_unavailable")
    assert (shown["state"], shown["error"]) == ("broken", "inference_failed")
    assert again.status_code == 200
    assert [answer.status_code for answer in fine] == [200, 200]


async def test_a_device_out_of_memory_during_a_late_test_takes_no_version_down(serve, model):
    model.fail_with = torch.OutOfMemoryError("no")
    async with serve(warmup_s=0) as client:
        await until(lambda: len(model.batches) == 2)
        answers = [await client.post(f"/classify/{domain}", content=picture()) for domain in ("ink", "paint")]
        states = (await client.get("/readyz")).json()["domains"]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert states == {"ink": "live", "paint": "live"}


@pytest.mark.parametrize("warmup_s", [0, 60], ids=["no time for smoke tests", "time"])
async def test_what_first_batches_would_wait_for_is_done_before_requests(serve, model, warmup_s):
    prepared = []
    model.to_capture = [lambda: prepared.append("once")]
    async with serve(warmup_s=warmup_s):
        assert prepared == ["once"]


async def test_what_is_live_on_trust_is_tried_out_before_it_is_confirmed_as_live(serve, model):
    model.gate.clear()
    async with serve(warmup_s=0) as client:
        confirming = asyncio.ensure_future(client.put("/domains/paint/live", json={"version": 1}))
        await until(lambda: model.n_begun == 1)
        assert not confirming.done()
        model.gate.set()
        assert (await confirming).status_code == 200
        await until(lambda: len(model.batches) == 2)
    assert sorted(domain for batch in model.batches for domain in batch) == ["ink", "paint"]


async def test_at_start_stacks_are_made_while_another_one_is_tried_out(serve, model):
    made, load = [], model.load_stack
    model.load_stack = lambda bundle, **given: made.append(bundle.manifest.domain) or load(bundle, **given)
    model.gate.clear()

    async def start_and_stop():
        async with serve():
            pass

    starting = asyncio.create_task(start_and_stop())
    await until(lambda: model.n_begun == 1 and len(made) == 2)
    model.gate.set()
    await starting


async def test_a_broken_domain_does_not_keep_the_others_from_starting(serve, store):
    for blob in (store.root / "blobs").rglob("*"):
        if blob.is_file() and blob.read_bytes() == store.read("ink", 1):
            blob.chmod(0o600)
            blob.write_bytes(b"rot" + blob.read_bytes()[3:])
            break
    async with serve() as client:
        ready = await client.get("/readyz")
        rotten = await client.post("/classify/ink", content=picture())
        fine = await client.post("/classify/paint", content=picture())
        shown = (await client.get("/domains/ink")).json()
    assert (ready.status_code, ready.json()["domains"]) == (200, {"ink": "broken", "paint": "live"})
    assert (rotten.status_code, rotten.json()["code"]) == (503, "domain_unavailable")
    assert fine.status_code == 200
    assert shown["error"] == "version_corrupt"


DAMAGES = {
    "record": lambda log: (log / "0000000001.json").write_bytes(b"{}"),
    "link": lambda log: log.symlink_to(log.rename(log.with_name("away"))),
    "file": lambda log: (log.rename(log.with_name("away")), log.write_bytes(b"")),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_domain_with_a_damaged_log_is_listed_as_broken_and_the_others_are_served(serve, store, caplog, damage):
    log = store.root / "domains" / "ink" / "log"
    (log / "0000000001.json").chmod(0o600)
    DAMAGES[damage](log)
    store._logs._states.clear()  # as after a restart
    async with serve() as client:
        ready = await client.get("/readyz")
        listed = {one["domain"]: one for one in (await client.get("/domains")).json()["domains"]}
        fine = await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))
        refused = await client.post("/domains/ink/versions", content=colour_bundle("ink", ("blue", "red"), seed=1))
    assert (ready.status_code, ready.json()["domains"]) == (200, {"ink": "broken", "paint": "live"})
    assert (listed["ink"]["state"], listed["ink"]["error"]) == ("broken", "store_corrupt")
    assert fine.status_code == 201
    assert (refused.status_code, refused.json()["code"]) == (503, "store_corrupt")
    assert [(one.domain, one.code) for one in caplog.records if one.getMessage() == "domain.unavailable"] == [
        ("ink", "store_corrupt")
    ]


async def test_a_broken_domain_that_is_removed_from_the_store_is_no_longer_listed(serve, store, tmp_path):
    planted = store.root / "domains" / "planted"
    planted.symlink_to(tmp_path)
    async with serve() as client:
        before = (await client.get("/domains/planted")).json()["state"]
        planted.unlink()
        await client.context.watcher.refresh()
        after = await client.get("/domains/planted")
        metrics = (await client.get("/metrics")).text
    assert (before, after.status_code) == ("broken", 404)
    assert 'caspl_domains{state="broken"} 0.0' in metrics
    assert 'caspl_domains{state="live"} 2.0' in metrics


async def test_a_store_that_becomes_unreadable_is_logged_once_and_its_domains_go_on_serving(serve, store, caplog):
    domains = store.root / "domains"
    async with serve() as client:
        away = domains.rename(store.root / "away")
        domains.symlink_to(away)
        for _ in range(3):
            await client.context.watcher.refresh()
        answer = await client.post("/classify/paint", content=picture())
        domains.unlink()
        away.rename(domains)
        store.activate("paint", store.add("paint", colour_bundle(seed=1)).version)
        await client.context.watcher.refresh()
        followed = await client.post("/classify/paint", content=picture())
    logged = [record for record in caplog.records if record.getMessage() == "store.unreadable"]
    assert [(record.code, record.exc_info) for record in logged] == [("store_corrupt", None)]
    assert (answer.status_code, answer.json()["version"], followed.json()["version"]) == (200, 1, 2)


async def test_a_service_without_a_domain_is_ready_and_takes_the_first_one(serve, store, monkeypatch):
    monkeypatch.setattr(store, "domains", list)
    async with serve() as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["domains"]) == (200, {})
        uploaded = await client.post("/domains/first/versions?activate=true", content=colour_bundle("first"))
        assert uploaded.status_code == 201
        assert (await client.post("/classify/first", content=picture())).status_code == 200


async def test_changes_by_another_process_are_followed(serve, store):
    other = Store.open(store.root)
    async with serve() as client:
        added = other.add("paint", colour_bundle(seed=1))
        other.activate("paint", added.version)
        new = other.add("late", colour_bundle("late"))
        other.activate("late", new.version)
        await client.context.watcher.refresh()
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
        assert (await client.post("/classify/late", content=picture())).status_code == 200


async def test_following_a_version_that_cannot_load_keeps_the_one_that_answers(serve, store, model):
    added = store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        model.fail_load = True
        store.activate("paint", added.version)
        await client.context.watcher.refresh()
        shown = (await client.get("/domains/paint")).json()
        answer = await client.post("/classify/paint", content=picture())
        model.fail_load = False
        await client.context.watcher.refresh()
        still = (await client.get("/domains/paint")).json()
        again = await client.put("/domains/paint/live", json={"version": 2})
        mended = (await client.get("/domains/paint")).json()
    assert (shown["state"], shown["version"], shown["error"]) == ("stale", 1, "stack_mismatch")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert still["state"] == "stale"
    assert again.status_code == 200
    assert (mended["state"], mended["version"]) == ("live", 2)


async def test_a_domain_is_live_again_once_what_failed_has_passed(serve, store, model, monkeypatch):
    added = store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        follower = client.context.watcher
        with monkeypatch.context() as broken:
            broken.setattr(store, "live", lambda _: (_ for _ in ()).throw(StoreReadOnlyError("not now")))
            await follower.refresh()
            unreadable = (await client.get("/domains/paint")).json()
        await follower.refresh()
        readable = (await client.get("/domains/paint")).json()
        model.fail_load = True
        store.activate("paint", added.version)
        await follower.refresh()
        stale = (await client.get("/domains/paint")).json()
        store.rollback("paint")
        await follower.refresh()
        back = (await client.get("/domains/paint")).json()
        model.fail_load = False
        store.activate("paint", added.version)
        await follower.refresh()
        forward = (await client.get("/domains/paint")).json()
    assert (unreadable["state"], unreadable["error"]) == ("stale", "store_read_only")
    assert (readable["state"], readable["error"]) == ("live", None)
    assert stale["state"] == "stale"
    assert (back["state"], back["version"], back["error"]) == ("live", 1, None)
    assert (forward["state"], forward["version"]) == ("live", 2)
