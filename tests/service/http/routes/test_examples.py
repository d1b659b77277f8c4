"""Adding examples: images, labels, what is stored, and every refusal."""

import asyncio
import base64
import hashlib
import io
import json
import logging
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from service.access.key_file import add_key, read_keys
from tests.service.engine.engine_rows import until
from tests.service.fakes import colour_bundle, picture
from tests.service.http.test_disconnects import Visitor
from tests.service.images.test_decoder import animated, jpeg_of_size, png_of_size, scan_bomb

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
URL = "/domains/paint/examples"


def files(*parts):
    """Multipart files from (field, colour or bytes), each with a name of its own."""
    return [
        (field, (f"{n}.png", data if isinstance(data, bytes) else picture(data)))
        for n, (field, data) in enumerate(parts)
    ]


def base64_of(data):
    return base64.b64encode(data).decode()


def stored(client):
    """Label by id of all examples of `paint`."""
    return {one.id: one.label for one in client.context.examples.page("paint", limit=1000)}


async def test_images_are_added_with_the_label_of_their_field_and_the_prediction_of_the_live_version(serve, store):
    async with serve() as client:
        answer = await client.post(URL, files=files(("red", "red"), ("unlabelled", "blue"), ("dark_green", "green")))
        labels = stored(client)
    body = answer.json()
    assert answer.status_code == 201
    assert (body["domain"], body["version"], body["digest"]) == ("paint", 1, store.live("paint").digest)
    shown = [(one["index"], one["name"], one["status"], one["label"], one["error"]) for one in body["examples"]]
    assert shown == [
        (0, "0.png", "added", "red", None),
        (1, "1.png", "added", None, None),
        (2, "2.png", "added", "dark green", None),
    ]
    assert [one["prediction"]["label"] for one in body["examples"]] == ["red", "blue", "green"]
    assert {one["id"]: one["label"] for one in body["examples"]} == labels


async def test_images_come_as_base64_in_json_with_a_label_or_null(serve):
    images = [{"label": "red", "b64": base64_of(picture("red"))}, {"label": None, "b64": base64_of(picture("blue"))}]
    async with serve() as client:
        answer = await client.post(URL, json={"images": images})
        labels = stored(client)
    assert answer.status_code == 201
    assert [one["label"] for one in answer.json()["examples"]] == list(labels.values()) == ["red", None]


async def test_an_image_is_one_example_however_often_it_is_added(serve):
    async with serve() as client:

        async def add(*labels):
            answer = await client.post(URL, files=files(*((label, "red") for label in labels)))
            assert answer.status_code == 201
            return [(one["id"], one["status"], one["label"]) for one in answer.json()["examples"]]

        ((number, *first),) = await add("red")
        assert first == ["added", "red"]
        assert await add("red") == [(number, "exists", "red")]
        assert await add("unlabelled") == [(number, "exists", "red")]
        assert await add("crimson") == [(number, "relabelled", "crimson")]
        assert await add("red", "red") == [(number, "relabelled", "red"), (number, "exists", "red")]
        assert stored(client) == {number: "red"}
        other = await client.post("/domains/ink/examples", files=files(("red", "red")))
        assert other.json()["examples"][0]["status"] == "added"


async def test_a_label_is_spelled_as_the_class_or_as_earlier_examples_spell_it(serve):
    async with serve() as client:

        async def add(*parts):
            answer = await client.post(URL, files=files(*parts))
            return [one["label"] for one in answer.json()["examples"]]

        assert await add(("RED", "red"), ("\uff42lue", "blue"), ("unlabelled", "white")) == ["red", "blue", None]
        assert await add(("Navy", (0, 0, 128)), ("navy", (0, 0, 127))) == ["Navy", "Navy"]
        assert await add(("NAVY", (0, 0, 126)), ("Green", "green")) == ["Navy", "green"]
        renamed = await client.patch(URL, json={"label": "Blue", "ids": [1]})
        assert renamed.json() == {"domain": "paint", "label": "blue", "changed": 1}
        renamed = await client.patch(URL, json={"label": "navy", "ids": [1]})
        assert renamed.json()["label"] == "Navy"
        assert set(stored(client).values()) == {"Navy", "blue", "green", None}


async def test_an_example_has_its_digest_its_feature_and_its_thumbnail(serve):
    data = picture((200, 40, 10), (640, 480), "JPEG")
    async with serve() as client:
        added = await client.post(URL, files=files(("red", data)))
        classified = await client.post("/classify/paint?return=embedding", content=data)
        examples, number = client.context.examples, added.json()["examples"][0]["id"]
        (example,) = examples.page("paint")
        thumbnail = Image.open(io.BytesIO(examples.thumbnail("paint", number)))
        live = client.context.table.live("paint").stack
        features = examples.labelled("paint", f"{client.context.engine.backbone.fingerprint}/{live.image_digest}")
    assert example.sha256 == hashlib.sha256(data).hexdigest()
    assert not example.has_picture
    assert (thumbnail.format, thumbnail.size) == ("WEBP", (320, 240))
    assert features.ids_N == [number]
    np.testing.assert_allclose(features.features_NE[0], classified.json()["results"][0]["embedding"], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(features.features_NE[0]), 1, rtol=1e-6)


@pytest.mark.parametrize("keep", ["thumbnails", "pictures"])
async def test_the_image_itself_is_kept_only_with_the_setting_pictures(serve, keep):
    async with serve(keep_examples=keep) as client:
        await client.post(URL, files=files(("red", "red")))
        kept = client.context.examples.picture("paint", 1)
    assert kept == (picture("red") if keep == "pictures" else None)


async def test_examples_are_there_after_a_restart(serve):
    async with serve() as client:
        await client.post(URL, files=files(("red", "red")))
    async with serve() as client:
        assert (await client.get(URL)).json()["examples"][0]["label"] == "red"


HOSTILE = {
    "image_format": b"GIF89a" + bytes(40),
    "image_undecodable": b"",
    "image_truncated": picture()[:60],
    "image_pixels": png_of_size(50_000, 50_000),
    "image_aspect": png_of_size(500, 1),
    "image_animated": animated("WEBP"),
    "image_scans": scan_bomb(2_000),
}


async def test_a_bad_image_never_affects_its_neighbours(serve):
    parts = [("red", "red"), *((code.replace("_", " "), data) for code, data in HOSTILE.items()), ("blue", "blue")]
    async with serve() as client:
        answer = await client.post(URL, files=files(*parts, ("late", jpeg_of_size(30_000, 1_000))))
        labels = stored(client)
    results = answer.json()["examples"]
    assert answer.status_code == 201
    assert list(labels.values()) == ["red", "blue"], "in the order they were sent"
    assert [one["index"] for one in results if one["error"] is None] == [0, len(HOSTILE) + 1]
    failed = [one for one in results if one["error"]]
    assert [one["error"]["code"] for one in failed] == [*HOSTILE, "image_pixels"]
    assert all(one[name] is None for one in failed for name in ("id", "status", "label", "prediction"))


async def test_a_request_whose_images_are_all_bad_fails_as_a_whole_and_stores_nothing(serve):
    async with serve() as client:
        one = await client.post(URL, files=files(("red", b"GIF89a" + bytes(40))))
        several = await client.post(URL, files=files(("red", b""), ("red", picture()[:60])))
        labels = stored(client)
    assert (one.status_code, one.json()["code"]) == (415, "image_format")
    assert (several.status_code, several.json()["code"]) == (422, "images_rejected")
    reasons = [(error["index"], error["code"]) for error in several.json()["errors"]]
    assert reasons == [(0, "image_undecodable"), (1, "image_truncated")]
    assert labels == {}


@pytest.mark.parametrize(
    "label", ["", "  ", "_", "x" * 129, "a\x07b", "a\u202eb", "\ue000"], ids=lambda label: ascii(label)[:12]
)
async def test_an_invalid_label_is_named_and_nothing_is_stored(serve, label):
    images = [{"label": "red", "b64": base64_of(picture())}, {"label": label, "b64": base64_of(picture("blue"))}]
    async with serve() as client:
        answer = await client.post(URL, json={"images": images})
        labels = stored(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "label_invalid")
    assert answer.json()["field"] == "images[1].label"
    assert labels == {}


def labelled(label, data="eA=="):
    return f'{{"label": {label}, "b64": "{data}"}}'


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"content": picture(), "headers": {"content-type": "image/png"}}, 415, "unsupported_media"),
        ({"content": picture()}, 415, "unsupported_media"),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, 422, "request_invalid"),
        ({"json": {"images": []}}, 422, "request_invalid"),
        ({"json": {"images": [{"b64": "eA=="}]}}, 422, "request_invalid"),
        ({"json": {"images": [{"label": "red"}]}}, 422, "request_invalid"),
        ({"json": {"images": [{"label": 1, "b64": "eA=="}]}}, 422, "request_invalid"),
        ({"json": {"images": [{"label": ["red"], "b64": "eA=="}]}}, 422, "request_invalid"),
        ({"json": {"images": [{"label": "red", "b64": "eA==", "domain": "ink"}]}}, 422, "request_invalid"),
        ({"json": {"images": [{"label": "red", "b64": "not base64!"}]}}, 422, "image_base64"),
        ({"files": [("red", picture())], "headers": {"content-encoding": "gzip"}}, 415, "unsupported_media"),
        ({"files": [("red", (None, "a text field"))]}, 422, "request_invalid"),
        ({"files": [("red", (f"{n}.png", picture())) for n in range(17)]}, 413, "too_many_images"),
        ({"json": {"images": [{"label": None, "b64": "eA=="}] * 17}}, 413, "too_many_images"),
    ],
    ids=range(14),
)
async def test_a_body_of_another_form_is_refused_with_its_code(serve, options, status, code):
    async with serve() as client:
        answer = await client.post(URL, **options)
        assert not (client.context.store.root / "examples.sqlite3").exists()
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.parametrize(
    "image",
    ['{"label": "red", "label": "blue", "b64": "eA=="}', labelled('"a\\"b"'), labelled('"\\ud800"')],
    ids=range(3),
)
async def test_json_with_a_repeated_key_or_an_invalid_label_is_refused(serve, image):
    body = f'{{"images": [{image}]}}'
    async with serve() as client:
        answer = await client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422


async def test_an_incomplete_multipart_body_stores_nothing(serve):
    async with serve() as client:
        request = client.build_request("POST", URL, files=files(("red", "red"), ("blue", "blue")))
        body = request.read()
        answer = await client.post(URL, content=body[:-10], headers={"content-type": request.headers["content-type"]})
        labels = stored(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert labels == {}


@pytest.mark.parametrize("query", ["top_k=3", "labels=red", "timeout_ms=0", "timeout_ms=99999999", "version=1"])
async def test_an_unknown_parameter_or_an_impossible_timeout_is_422(serve, query):
    async with serve() as client:
        answer = await client.post(f"{URL}?{query}", files=files(("red", "red")))
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


async def test_a_domain_without_a_live_version_takes_no_examples(serve, store):
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        draft = await client.post("/domains/draft/examples", files=files(("red", "red")))
        missing = await client.post("/domains/nowhere/examples", files=files(("red", "red")))
    assert (draft.status_code, draft.json()["code"]) == (404, "domain_not_live")
    assert (missing.status_code, missing.json()["code"]) == (404, "domain_not_found")


async def test_a_full_domain_is_409_and_takes_none_of_the_images(serve):
    async with serve(max_examples=2) as client:
        await client.post(URL, files=files(("red", "red")))
        full = await client.post(URL, files=files(("blue", "blue"), ("green", "green")))
        labels = stored(client)
        again = await client.post(URL, files=files(("crimson", "red")))
    assert (full.status_code, full.json()["code"], full.json()["limit"]) == (409, "examples_full", 2)
    assert list(labels.values()) == ["red"]
    assert again.json()["examples"][0]["status"] == "relabelled", "which takes no place"


async def test_all_examples_together_are_bounded_in_bytes(serve):
    async with serve(max_example_bytes=100) as client:
        answer = await client.post(URL, files=files(("red", picture((1, 2, 3), (300, 200)))))
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (409, "examples_full", 100)


async def test_a_damaged_database_is_503_and_images_are_still_classified(serve, store):
    (store.root / "examples.sqlite3").write_bytes(b"no database" * 1000)
    async with serve() as client:
        answers = [
            await client.post(URL, files=files(("red", "red"))),
            await client.get(URL),
            await client.patch(URL, json={"label": "red", "ids": [1]}),
            await client.delete(f"{URL}?all=true"),
            await client.get(f"{URL}/1/thumbnail"),
        ]
        classified = await client.post("/classify/paint", content=picture())
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "database_corrupt")}
    assert classified.status_code == 200


async def test_images_whose_forward_fails_are_not_stored(serve, model):
    async with serve() as client:
        model.fail_with = RuntimeError("secret")
        answer = await client.post(URL, files=files(("red", "red")))
        labels = stored(client)
    assert (answer.status_code, answer.json()["code"]) == (500, "inference_failed")
    assert "secret" not in answer.text
    assert labels == {}


async def test_a_request_that_is_late_or_abandoned_stores_nothing(serve, model):
    async with serve() as client:
        model.gate.clear()
        late = await client.post(f"{URL}?timeout_ms=50", files=files(("red", "red")))
        n_begun = model.n_begun
        body = json.dumps({"images": [{"label": "red", "b64": base64_of(picture())}]}).encode()
        visitor = Visitor(client.app, URL, body=body, headers=[(b"content-type", b"application/json")])
        await until(lambda: model.n_begun > n_begun or client.context.batcher.n_queued)
        visitor.leave()
        await asyncio.wait_for(visitor.call, 10)
        model.gate.set()
        labels = stored(client)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert visitor.status == 499
    assert labels == {}


async def test_by_default_adding_may_take_longer_than_classifying(serve, model):
    async with serve(default_timeout_s=0.1) as client:
        model.forward_s = 0.3
        added = await client.post(URL, files=files(("red", "red")))
        classified = await client.post("/classify/paint", content=picture())
    assert added.status_code == 201
    assert classified.status_code in {429, 504}


async def test_images_queue_behind_those_of_classify_requests(serve):
    async with serve() as client:
        await client.post(URL, files=files(("red", "red"), ("blue", "blue")))
        text = (await client.get("/metrics")).text
    assert 'caspl_rows_entered_total{priority="low"} 2.0' in text


async def test_images_beyond_the_places_in_decoding_are_429(serve):
    async with serve() as client:
        places = client.app.state.context.decoder.places
        with places.holding(["one client"] * 64 + ["another"] * 20):
            answer = await client.post(URL, files=files(*(("red", "red"),) * 16))
        labels = stored(client)
    assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
    assert "retry-after" in answer.headers
    assert labels == {}


async def test_only_a_key_with_the_scope_and_the_domain_adds_and_it_is_recorded(serve, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "keys.json"
    sent = {
        "other scope": add_key(path, ["classify", "publish", "activate"], []),
        "other domain": add_key(path, ["teach"], ["ink"]),
        "right": add_key(path, ["teach"], ["paint"]),
    }
    async with serve(read_keys(path)) as client:
        answers = {
            name: await client.post(URL, files=files(("red", "red")), headers={"authorization": f"Bearer {key}"})
            for name, key in sent.items()
        }
        without = await client.post(URL, files=files(("red", "red")))
        (example,) = client.context.examples.page("paint")
    assert without.status_code == 401
    assert {name: answer.status_code for name, answer in answers.items()} == {
        "other scope": 403,
        "other domain": 403,
        "right": 201,
    }
    key_id = sent["right"].split("_")[1]
    (record,) = (record for record in caplog.records if record.message == "example.added")
    assert (example.added_by, record.actor, record.domain, record.n_added) == (key_id, key_id, "paint", 1)


async def test_examples_are_counted_by_result(serve):
    async with serve() as client:
        await client.post(URL, files=files(("red", "red"), ("blue", "blue"), ("blue", "red")))
        await client.post(URL, files=files(("red", "blue"), ("blue", "blue")))
        await client.patch(URL, json={"label": "x", "ids": [1, 2]})
        await client.delete(f"{URL}?all=true")
        text = (await client.get("/metrics")).text
    for result, n in (("added", 2), ("relabelled", 5), ("removed", 2)):
        assert f'caspl_examples_total{{domain="paint",result="{result}"}} {n}.0' in text
    assert 'caspl_images_total{domain="paint",result="answered"} 5.0' in text


async def test_a_database_that_another_process_locks_does_not_delay_classification(serve, store):
    async with serve() as client:
        await client.post(URL, files=[("red", ("a.png", picture("red")))])
        with closing(sqlite3.connect(store.root / "examples.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            changes = [
                asyncio.create_task(client.patch(URL, json={"label": f"class {n}", "ids": [1]})) for n in range(40)
            ]
            await asyncio.sleep(0.5)
            body = {"images": [{"b64": base64_of(picture("red"))}]}
            async with asyncio.timeout(5):
                assert (await client.post("/classify/paint", json=body)).status_code == 200
            other.execute("ROLLBACK")
        assert {one.status_code for one in await asyncio.gather(*changes)} == {200}
