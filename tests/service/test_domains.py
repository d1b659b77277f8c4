import asyncio
import gc
import re
import weakref

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompt_store.errors import StorageFullError, StoreReadOnlyError
from prompt_store.manifest import BackboneSpec
from prompt_store.store import Store
from service.errors import InferenceFailedError
from tests.service.engine_rows import until
from tests.service.fakes import FINGERPRINT, PREPROCESS, colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


def tree(root):
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


async def test_the_list_names_every_domain_with_what_is_live(serve, store):
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        domains = (await client.get("/domains")).json()["domains"]
    assert [(one["domain"], one["state"], one["version"], one["n_classes"]) for one in domains] == [
        ("draft", "idle", None, None),
        ("ink", "live", 1, 2),
        ("paint", "live", 1, 3),
    ]


async def test_a_domain_tells_its_classes_and_its_etag_is_the_live_digest(serve, store):
    async with serve() as client:
        answer = await client.get("/domains/paint")
        missing = await client.get("/domains/nowhere")
    assert answer.json()["classes"] == ["red", "green", "blue"]
    assert answer.headers["etag"] == f'"{store.live("paint").digest}"'
    assert (missing.status_code, missing.json()["code"]) == (404, "domain_not_found")


async def test_an_upload_is_stored_and_not_live_until_it_is_activated(serve, store):
    data = colour_bundle(seed=1)
    async with serve() as client:
        answer = await client.post("/domains/paint/versions", content=data)
        body = answer.json()
        assert answer.status_code == 201, body
        assert (body["version"], body["is_new"], body["is_live"]) == (2, True, False)
        assert answer.headers["location"] == "/domains/paint/versions/2"
        assert answer.headers["etag"] == f'"{read_bundle(data).digest}"'
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 1
        live = await client.put("/domains/paint/live", json={"version": 2})
        assert (live.status_code, live.json()["version"]) == (200, 2)
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
    assert store.live("paint").version == 2


async def test_a_content_is_tried_out_once_and_one_that_failed_again(serve, model):
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


async def test_what_is_live_at_start_is_tried_out_before_the_first_request(serve, model):
    async with serve():
        assert sorted(domain for batch in model.batches for domain in batch) == ["ink", "paint"]


async def test_what_there_is_no_time_for_at_start_answers_at_once_and_is_tried_out_beside_requests(serve, model):
    model.gate.clear()
    async with serve(trials_s=0) as client:
        assert (await client.get("/readyz")).json()["domains"] == {"ink": "live", "paint": "live"}
        assert model.batches == []
        model.gate.set()
        await until(lambda: len(model.batches) == 2)
        assert (await client.post("/classify/paint", content=picture())).status_code == 200


async def test_a_stack_that_fails_when_it_is_tried_out_late_is_taken_off_and_comes_back_once_it_answers(serve, model):
    model.fail_with = InferenceFailedError("not finite")
    async with serve(trials_s=0) as client:
        table = client.runtime.domains.table
        await until(lambda: any(state.error for state in client.runtime.domains.table.values()))
        (domain,) = (name for name, state in client.runtime.domains.table.items() if state.error)
        broken = await client.post(f"/classify/{domain}", content=picture())
        shown = (await client.get(f"/domains/{domain}")).json()
        again = await client.put(f"/domains/{domain}/live", json={"version": 1})
        fine = [await client.post(f"/classify/{name}", content=picture()) for name in table]
    assert (broken.status_code, broken.json()["code"]) == (503, "domain_unavailable")
    assert (shown["state"], shown["error"]) == ("broken", "inference_failed")
    assert again.status_code == 200
    assert [answer.status_code for answer in fine] == [200, 200]


async def test_a_device_without_room_for_a_late_trial_is_no_fault_of_the_stack(serve, model):
    model.fail_with = torch.OutOfMemoryError("no")
    async with serve(trials_s=0) as client:
        await until(lambda: len(model.batches) == 2)
        answers = [await client.post(f"/classify/{domain}", content=picture()) for domain in ("ink", "paint")]
        states = (await client.get("/readyz")).json()["domains"]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert states == {"ink": "live", "paint": "live"}


async def test_what_first_batches_would_wait_for_is_done_before_requests_with_time_for_trials_or_without(serve, model):
    prepared = []
    model.to_prepare = [lambda: prepared.append(len(model.batches))]
    async with serve(trials_s=0):
        assert prepared == [0]


async def test_what_is_live_on_trust_is_tried_out_before_it_is_confirmed_as_live(serve, model):
    model.gate.clear()
    async with serve(trials_s=0) as client:
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
        model.load_stack = lambda bundle, *, version=None: made.append(version) or load(bundle, version=version)
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
            stacks.append(weakref.ref(client.runtime.domains.pin("paint").stack))
        gc.collect()
        assert [stack() is not None for stack in stacks] == [False] * 4 + [True] * 3


async def test_a_kept_version_that_another_process_retires_is_forgotten(serve, store):
    async with serve() as client:
        assert (await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=1))).is_success
        await client.runtime.domains.refresh()
        before = await client.post("/classify/paint?version=1", content=picture())
        Store.open(store.root).retire("paint", 1)
        await client.runtime.domains.refresh()
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
    assert (refused.status_code, refused.json()["code"]) == (500, "version_corrupt")
    assert (answer.status_code, answer.json()["version"]) == (200, 2)


async def test_an_upload_with_activate_serves_when_it_answers_even_for_a_new_domain(serve):
    async with serve() as client:
        answer = await client.post("/domains/fresh/versions?activate=true", content=colour_bundle("fresh"))
        assert (answer.status_code, answer.json()["is_live"]) == (201, True)
        assert (await client.post("/classify/fresh", content=picture())).status_code == 200


async def test_the_same_content_again_is_200_and_an_older_content_409(serve):
    first, second = colour_bundle(), colour_bundle(seed=1)
    async with serve() as client:
        again = await client.post("/domains/paint/versions", content=first)
        assert (again.status_code, again.json()["version"], again.json()["is_new"]) == (200, 1, False)
        assert (await client.post("/domains/paint/versions", content=second)).status_code == 201
        older = await client.post("/domains/paint/versions", content=first)
    assert (older.status_code, older.json()["code"], older.json()["version"]) == (409, "version_exists", 1)


def broken_bundles():
    fine = colour_bundle(seed=9)
    yield "empty", b"", 422
    yield "not safetensors", b"PK\x03\x04" + bytes(200), 422
    yield "cut short", fine[:-1], 422
    yield "one byte more", fine + b"\0", 422
    yield "not a number", fine[:-4] + b"\x00\x00\xc0\x7f", 422
    yield "for another domain", colour_bundle("ink", seed=9), 422


@pytest.mark.parametrize(("data", "status"), [pytest.param(d, s, id=name) for name, d, s in broken_bundles()])
async def test_a_bundle_that_breaks_a_rule_names_it_and_nothing_is_stored(serve, store, data, status):
    before = tree(store.root)
    async with serve() as client:
        answer = await client.post("/domains/paint/versions?activate=true", content=data)
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 1
    assert answer.status_code == status
    assert re.fullmatch(r"[a-z_]+", answer.json()["code"])
    assert answer.json()["code"] not in {"internal", "bundle_invalid"}
    assert tree(store.root) == before


async def test_a_bundle_for_another_backbone_is_409_with_both_fingerprints(serve, store):
    other = "sha256:" + "cd" * 32
    spec = BackboneSpec(arch="other", pretrained=None, fingerprint=other, image_size=16, preprocess=PREPROCESS)
    before = tree(store.root)
    async with serve() as client:
        answer = await client.post("/domains/paint/versions", content=colour_bundle(backbone=spec))
    body = answer.json()
    assert (answer.status_code, body["code"]) == (409, "backbone_mismatch")
    assert (body["expected_fingerprint"], body["found_fingerprint"]) == (FINGERPRINT, other)
    assert tree(store.root) == before


async def test_a_bundle_that_cannot_answer_is_refused_before_it_is_stored(serve, store, model):
    before = tree(store.root)
    async with serve() as client:
        model.fail_load = True
        mismatched = await client.post("/domains/paint/versions", content=colour_bundle(seed=1))
        model.fail_load = False
        model.fail_with = RuntimeError("no")
        silent = await client.post("/domains/paint/versions", content=colour_bundle(seed=2))
    assert (mismatched.status_code, mismatched.json()["code"]) == (422, "stack_mismatch")
    assert silent.status_code == 500
    assert tree(store.root) == before


@pytest.mark.parametrize("name", ["UPPER", "a--b", "-a", "con", "a_b", "%2e%2e", "v1"])
async def test_an_upload_to_a_name_that_is_no_domain_is_refused(serve, store, name):
    before = tree(store.root)
    async with serve() as client:
        answer = await client.post(f"/domains/{name}/versions", content=colour_bundle())
    assert answer.status_code in {404, 422}
    assert tree(store.root) == before


async def test_an_upload_of_another_content_type_is_415(serve):
    async with serve() as client:
        answer = await client.post(
            "/domains/paint/versions", content=colour_bundle(), headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media")


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoreReadOnlyError("disk /dev/sda said no"), 503), (StorageFullError("/store is full"), 507)],
)
async def test_a_store_that_cannot_write_fails_the_upload_and_nothing_else(serve, store, monkeypatch, error, status):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(store, "add", refuse)
    async with serve() as client:
        answer = await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=4))
        fine = await client.post("/classify/paint", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (status, error.code)
    assert "/" not in answer.json()["detail"]
    assert fine.json()["version"] == 1


async def test_versions_are_listed_shown_and_given_back_byte_for_byte(serve, store):
    data = colour_bundle(seed=1)
    async with serve() as client:
        await client.post("/domains/paint/versions", content=data)
        listed = (await client.get("/domains/paint/versions")).json()["versions"]
        shown = await client.get("/domains/paint/versions/2")
        content = await client.get("/domains/paint/versions/2/content")
        missing = [await client.get(f"/domains/paint/versions/9{tail}") for tail in ("", "/content")]
    assert [(one["version"], one["is_live"]) for one in listed] == [(1, True), (2, False)]
    assert shown.json()["manifest"]["classes"][0] == {"name": "red", "text": "red"}
    assert content.content == data
    assert shown.headers["etag"] == content.headers["etag"] == f'"{read_bundle(data).digest}"'
    assert {(one.status_code, one.json()["code"]) for one in missing} == {(404, "version_not_found")}


async def test_if_match_lets_only_one_of_two_operators_win(serve, store):
    for seed in (1, 2):
        store.add("paint", colour_bundle(seed=seed))
    async with serve() as client:
        etag = (await client.get("/domains/paint")).headers["etag"]
        first = await client.put("/domains/paint/live", json={"version": 2}, headers={"if-match": etag})
        second = await client.put("/domains/paint/live", json={"version": 3}, headers={"if-match": etag})
        third = await client.put(
            "/domains/paint/live", json={"version": 3}, headers={"if-match": first.headers["etag"]}
        )
        senseless = await client.put("/domains/paint/live", json={"version": 3}, headers={"if-match": "W/3"})
    assert first.status_code == 200
    assert (second.status_code, second.json()["code"]) == (412, "precondition_failed")
    assert third.status_code == 200
    assert senseless.status_code == 422
    assert store.live("paint").version == 3


async def test_a_json_body_that_is_not_text_is_refused(serve):
    async with serve() as client:
        answer = await client.put(
            "/domains/paint/live", content=b'{"version": "\xff"}', headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["code"]) == (400, "request_invalid")


@pytest.mark.parametrize(
    ("body", "status"), [({"version": 9}, 404), ({"version": 0}, 422), ({"version": "x"}, 422), ({}, 422), ([], 422)]
)
async def test_what_is_not_there_cannot_go_live(serve, store, body, status):
    async with serve() as client:
        answer = await client.put("/domains/paint/live", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert store.live("paint").version == 1


async def test_a_version_that_cannot_load_never_goes_live(serve, store, model):
    store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        model.fail_load = True
        answer = await client.put("/domains/paint/live", json={"version": 2})
        model.fail_load = False
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 1
    assert answer.status_code == 422
    assert store.live("paint").version == 1


async def test_rollback_walks_back_and_history_tells_it_all(serve, store):
    async with serve() as client:
        for seed in (1, 2):
            await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=seed))
        went = [(await client.post("/domains/paint/rollback")).json().get("version") for _ in range(2)]
        end = await client.post("/domains/paint/rollback")
        serving = (await client.post("/classify/paint", content=picture())).json()["version"]
        history = (await client.get("/domains/paint/history")).json()["history"]
    assert went == [2, 1]
    assert (end.status_code, end.json()["code"]) == (409, "nothing_to_roll_back")
    assert serving == 1
    assert [
        (one["action"], one["from_version"], one["to_version"]) for one in history if one["action"] != "publish"
    ] == [
        ("activate", None, 1),
        ("activate", 1, 2),
        ("activate", 2, 3),
        ("rollback", 3, 2),
        ("rollback", 2, 1),
    ]


async def test_a_rollback_to_what_cannot_load_changes_nothing(serve, store, model):
    store.activate("paint", store.add("paint", colour_bundle(seed=1)).version)
    async with serve() as client:
        model.fail_load = True
        answer = await client.post("/domains/paint/rollback")
        assert answer.status_code == 422
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
    assert store.live("paint").version == 2


async def test_a_version_is_removed_unless_it_is_live(serve, store):
    async with serve() as client:
        await client.post("/domains/paint/versions", content=colour_bundle(seed=1))
        live = await client.delete("/domains/paint/versions/1")
        gone = await client.delete("/domains/paint/versions/2")
        again = await client.delete("/domains/paint/versions/2")
        asked = await client.post("/classify/paint?version=2", content=picture())
    assert (live.status_code, live.json()["code"]) == (409, "version_live")
    assert (gone.status_code, gone.content) == (204, b"")
    assert again.status_code == asked.status_code == 404


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


async def test_changes_by_another_process_are_followed(serve, store):
    other = Store.open(store.root)
    async with serve() as client:
        added = other.add("paint", colour_bundle(seed=1))
        other.activate("paint", added.version)
        new = other.add("late", colour_bundle("late"))
        other.activate("late", new.version)
        await client.runtime.domains.refresh()
        assert (await client.post("/classify/paint", content=picture())).json()["version"] == 2
        assert (await client.post("/classify/late", content=picture())).status_code == 200


async def test_following_a_version_that_cannot_load_keeps_the_one_that_answers(serve, store, model):
    added = store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        model.fail_load = True
        store.activate("paint", added.version)
        await client.runtime.domains.refresh()
        shown = (await client.get("/domains/paint")).json()
        answer = await client.post("/classify/paint", content=picture())
        model.fail_load = False
        await client.runtime.domains.refresh()
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
        domains = client.runtime.domains
        with monkeypatch.context() as broken:
            broken.setattr(store, "live", lambda _: (_ for _ in ()).throw(StoreReadOnlyError("not now")))
            await domains.refresh()
            unreadable = (await client.get("/domains/paint")).json()
        await domains.refresh()
        readable = (await client.get("/domains/paint")).json()
        model.fail_load = True
        store.activate("paint", added.version)
        await domains.refresh()
        stale = (await client.get("/domains/paint")).json()
        store.rollback("paint")
        await domains.refresh()
        back = (await client.get("/domains/paint")).json()
        model.fail_load = False
        store.activate("paint", added.version)
        await domains.refresh()
        forward = (await client.get("/domains/paint")).json()
    assert (unreadable["state"], unreadable["error"]) == ("stale", "store_read_only")
    assert (readable["state"], readable["error"]) == ("live", None)
    assert stale["state"] == "stale"
    assert (back["state"], back["version"], back["error"]) == ("live", 1, None)
    assert (forward["state"], forward["version"]) == ("live", 2)


async def test_activations_of_one_domain_at_the_same_time_end_in_what_the_store_says(serve, store):
    for seed in range(1, 6):
        store.add("paint", colour_bundle(seed=seed))
    async with serve() as client:
        await asyncio.gather(*(client.put("/domains/paint/live", json={"version": n}) for n in (2, 3, 4, 5, 6)))
        answered = (await client.post("/classify/paint", content=picture())).json()
    assert answered["version"] == store.live("paint").version
    assert answered["digest"] == store.live("paint").digest
