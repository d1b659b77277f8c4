import asyncio
import errno
import re
import threading

import pytest

from prompt_store.bundle import read_bundle
from prompt_store.durable import to_store_error
from prompt_store.errors import StorageFullError
from prompt_store.manifest import BackboneSpec
from tests.service.engine.engine_rows import until
from tests.service.fakes import FINGERPRINT, PREPROCESS, colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = IS_FORWARDED = True


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


@pytest.mark.parametrize(
    ("changes", "fact", "expected", "found"),
    [
        ({"arch": "other"}, "arch", "colours", "other"),
        ({"image_size": 24}, "image_size", 16, 24),
        ({"preprocess": PREPROCESS | {"mean": [0.1, 0.5, 0.5]}}, "mean", [0.5, 0.5, 0.5], [0.1, 0.5, 0.5]),
        ({"preprocess": {"resize_mode": "squash"}}, "resize_mode", "shortest", "squash"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bundle_with_the_same_weights_and_other_facts_is_409_with_both_values(
    serve, store, changes, fact, expected, found
):
    facts = {"arch": "colours", "fingerprint": FINGERPRINT, "image_size": 16, "preprocess": PREPROCESS}
    before = tree(store.root)
    async with serve() as client:
        bundle = colour_bundle(seed=1, backbone=BackboneSpec(**(facts | changes)))
        answer = await client.post("/domains/paint/versions", content=bundle)
    body = answer.json()
    assert (answer.status_code, body["code"]) == (409, "backbone_mismatch")
    assert (body[f"expected_{fact}"], body[f"found_{fact}"]) == (expected, found)
    assert tree(store.root) == before


async def test_facts_that_a_manifest_leaves_out_and_the_name_of_the_activation_are_no_mismatch(serve):
    spec = BackboneSpec(arch="colours-quickgelu", fingerprint=FINGERPRINT, image_size=16, preprocess={"new": 1})
    async with serve() as client:
        answer = await client.post("/domains/paint/versions", content=colour_bundle(seed=1, backbone=spec))
    assert answer.status_code == 201


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


DISK_ERRORS = {errno.EIO: 503, errno.EROFS: 503, errno.EFBIG: 503, errno.ENOTDIR: 503, errno.ENOSPC: 507}


@pytest.mark.parametrize(
    ("error", "status"),
    [(to_store_error(OSError(number, "/dev/sda", "/store/x")), status) for number, status in DISK_ERRORS.items()],
    ids=map(errno.errorcode.get, DISK_ERRORS),
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


CHANGES = {
    "publish": lambda client: client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=3)),
    "activate": lambda client: client.put("/domains/paint/live", json={"version": 1}),
    "rollback": lambda client: client.post("/domains/paint/rollback"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_no_request_sees_a_version_before_it_is_durably_live(serve, store, monkeypatch, change):
    store.activate("paint", store.add("paint", colour_bundle(seed=1)).version)
    entered, released = threading.Event(), threading.Event()

    def held(make_durable):
        def call(*arguments, **options):
            entered.set()
            assert released.wait(20)
            return make_durable(*arguments, **options)

        return call

    async with serve() as client:
        for name in ("activate", "rollback"):
            monkeypatch.setattr(store, name, held(getattr(store, name)))
        changing = asyncio.ensure_future(CHANGES[change](client))
        await until(entered.is_set)
        during = (await client.post("/classify/paint", content=picture())).json()["version"]
        listed = (await client.get("/domains/paint")).json()["version"]
        released.set()
        assert (await changing).is_success
        after = (await client.post("/classify/paint", content=picture())).json()["version"]
    assert (during, listed) == (2, 2)
    assert after == store.live("paint").version != 2


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_the_store_refuses_is_never_shown(serve, store, monkeypatch, change):
    store.activate("paint", store.add("paint", colour_bundle(seed=1)).version)

    def refuse(*_, **__):
        raise StorageFullError("full")

    async with serve() as client:
        for name in ("activate", "rollback"):
            monkeypatch.setattr(store, name, refuse)
        refused = await CHANGES[change](client)
        served = (await client.post("/classify/paint", content=picture())).json()["version"]
        listed = (await client.get("/domains/paint")).json()["version"]
    assert refused.status_code == 507
    assert (served, listed) == (2, 2)


async def test_activations_of_one_domain_at_the_same_time_end_in_what_the_store_says(serve, store):
    for seed in range(1, 6):
        store.add("paint", colour_bundle(seed=seed))
    async with serve() as client:
        await asyncio.gather(*(client.put("/domains/paint/live", json={"version": n}) for n in (2, 3, 4, 5, 6)))
        answered = (await client.post("/classify/paint", content=picture())).json()
    assert answered["version"] == store.live("paint").version
    assert answered["digest"] == store.live("paint").digest


async def test_failed_uploads_activations_and_rollbacks_are_counted_but_conflicts_are_not(serve, store, model):
    store.activate("paint", store.add("paint", colour_bundle(seed=1)).version)
    async with serve() as client:

        async def n_failed():
            found = re.search(
                r'caspl_activations_total{domain="paint",result="failed"} (\S+)', (await client.get("/metrics")).text
            )
            return float(found[1]) if found else 0.0

        await client.put("/domains/paint/live", json={"version": 1}, headers={"If-Match": '"sha256:other"'})
        await client.put("/domains/paint/live", json={"version": 9})
        assert await n_failed() == 0
        model.fail_load = True
        await client.put("/domains/paint/live", json={"version": 1})
        assert await n_failed() == 1
        await client.post("/domains/paint/rollback")
        assert await n_failed() == 2
        await client.post("/domains/paint/versions", content=colour_bundle(seed=2))
        assert await n_failed() == 2  # nothing was to go live
        await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=2))
        assert await n_failed() == 3
