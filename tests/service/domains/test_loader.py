"""Loading versions: smoke tests, the cache of recent versions, eviction."""

import gc
import weakref

import pytest

from prompt_store.store import Store
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


async def test_a_version_is_tested_once_while_it_is_loaded_and_again_if_the_test_failed(serve, model):
    async with serve() as client:
        model.batches.clear()
        model.fail_with = RuntimeError("no")
        assert (await client.post("/domains/paint/versions", content=colour_bundle(seed=1))).status_code == 500
        model.fail_with = None
        assert (await client.post("/domains/paint/versions", content=colour_bundle(seed=1))).status_code == 201
        assert len(model.batches) == 2
        for version in (2, 1, 2):
            assert (await client.put("/domains/paint/live", json={"version": version})).status_code == 200
        assert (await client.post("/domains/paint/rollback")).status_code == 200
        assert len(model.batches) == 2


async def test_a_version_that_was_uploaded_goes_live_without_being_loaded_again(serve, model):
    made, load = [], model.load_stack
    model.load_stack = lambda bundle, **given: made.append(bundle.manifest.domain) or load(bundle, **given)
    async with serve() as client:
        made.clear()
        assert (await client.post("/domains/paint/versions", content=colour_bundle(seed=1))).status_code == 201
        assert (await client.put("/domains/paint/live", json={"version": 2})).status_code == 200
    assert made == ["paint"]


async def test_going_back_to_a_version_that_was_live_lately_reads_and_makes_nothing_anew(serve, model):
    made, load = [], model.load_stack
    async with serve() as client:
        assert (await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))).is_success
        model.load_stack = lambda bundle, **given: made.append(bundle.manifest.domain) or load(bundle, **given)
        back = await client.post("/domains/paint/rollback")
        forward = await client.put("/domains/paint/live", json={"version": 2})
        answers = [await client.post(f"/classify/paint?version={version}", content=picture()) for version in (1, 2)]
    assert (back.json()["version"], forward.json()["version"]) == (1, 2)
    assert [answer.json()["version"] for answer in answers] == [1, 2]
    assert made == []


async def test_no_more_replaced_versions_are_kept_than_allowed_and_a_retired_one_is_gone(serve, store, model):
    made, load = [], model.load_stack
    for seed in (1, 2):
        store.add("paint", colour_bundle(seed=seed))
    async with serve(max_old_stacks=1) as client:
        model.load_stack = lambda bundle: made.append(1 + bundle.manifest.provenance.seed) or load(bundle)
        for version in (2, 3, 2, 1):
            assert (await client.put("/domains/paint/live", json={"version": version})).is_success
        retired = await client.delete("/domains/paint/versions/2")
        gone = await client.put("/domains/paint/live", json={"version": 2})
    assert made == [2, 3, 1]
    assert (retired.status_code, gone.status_code) == (204, 404)


async def test_replaced_versions_that_are_not_kept_any_more_are_freed(serve, store):
    for seed in range(1, 7):
        store.add("paint", colour_bundle(seed=seed))
    async with serve(max_old_stacks=2) as client:
        stacks = []
        for version in range(1, 8):
            assert (await client.put("/domains/paint/live", json={"version": version})).is_success
            stacks.append(weakref.ref(client.context.table.pin("paint").stack))
        gc.collect()
        assert [stack() is not None for stack in stacks] == [False] * 4 + [True] * 3


async def test_a_kept_version_that_another_process_retires_is_forgotten(serve, store):
    async with serve() as client:
        assert (await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))).is_success
        await client.context.watcher.refresh()
        before = await client.post("/classify/paint?version=1", content=picture())
        Store.open(store.root).retire("paint", 1)
        await client.context.watcher.refresh()
        after = await client.post("/classify/paint?version=1", content=picture())
    assert (before.status_code, after.status_code) == (200, 404)


async def test_a_kept_version_whose_bytes_are_damaged_does_not_go_live_again(serve, store):
    async with serve() as client:
        assert (await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))).is_success
        for blob in (store.root / "blobs").rglob("*"):
            if blob.is_file() and blob.read_bytes() == colour_bundle():
                blob.chmod(0o600)
                blob.write_bytes(b"rot" + blob.read_bytes()[3:])
        refused = await client.post("/domains/paint/rollback")
        answer = await client.post("/classify/paint", content=picture())
    assert (refused.status_code, refused.json()["code"]) == (503, "version_corrupt")
    assert (answer.status_code, answer.json()["version"]) == (200, 2)


def rot(store, domain, version):
    """Damage the stored bytes of a version."""
    digest = next(info.digest for info in store.versions(domain) if info.version == version).removeprefix("sha256:")
    path = store.root / "blobs" / "sha256" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(b"rot" + path.read_bytes()[3:])


async def test_a_damaged_version_requested_by_number_is_503_without_a_traceback(serve, store, caplog):
    store.add("paint", colour_bundle(seed=1))
    rot(store, "paint", 2)
    async with serve() as client:
        by_number = await client.post("/classify/paint?version=2", content=picture())
        activated = await client.put("/domains/paint/live", json={"version": 2})
        downloaded = await client.get("/domains/paint/versions/2/content")
        answer = await client.post("/classify/paint", content=picture())
    for refused in (by_number, activated, downloaded):
        assert (refused.status_code, refused.json()["code"]) == (503, "version_corrupt")
    assert answer.status_code == 200
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


async def test_a_version_whose_bytes_rot_while_it_is_live_serves_until_the_restart(serve, store, caplog):
    async with serve() as client:
        rot(store, "paint", 1)
        await client.context.watcher.refresh()
        answers = [await client.post(f"/classify/paint{query}", content=picture()) for query in ("", "?version=1")]
        downloaded = await client.get("/domains/paint/versions/1/content")
    async with serve() as client:
        restarted = await client.post("/classify/paint", content=picture())
        ready = await client.get("/readyz")
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (downloaded.status_code, downloaded.json()["code"]) == (503, "version_corrupt")
    assert (restarted.status_code, restarted.json()["code"]) == (503, "domain_unavailable")
    assert (ready.status_code, ready.json()["domains"]["paint"]) == (200, "broken")
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


async def test_a_directory_with_the_versions_of_another_domain_is_not_served(serve, store):
    (store.root / "domains" / "paint").rename(store.root / "domains" / "other")
    async with serve() as client:
        answer = await client.post("/classify/other", content=picture())
        ready = await client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "domain_unavailable")
    assert ready.json()["domains"]["other"] == "broken"
