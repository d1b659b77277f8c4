import asyncio
import base64
import json

import httpx
import pytest

from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
PNG = {"content-type": "image/png"}


def best(result):
    return result["predictions"][0]["label"]


@pytest.fixture
def ask(serve):
    """Post to a running application once."""

    async def post(path, **options):
        async with serve() as client:
            return await client.post(path, **options)

    return post


async def test_a_raw_image_is_answered_with_the_version_and_digest_that_answered(ask, store):
    answer = await ask("/classify/paint", content=picture("green"), headers=PNG)
    body = answer.json()
    assert answer.status_code == 200, body
    assert best(body["results"][0]) == "green"
    assert (body["version"], body["digest"]) == (1, store.live("paint").digest)
    assert answer.headers["x-bundle-digest"] == body["digest"]
    assert answer.headers["x-request-id"] == body["request_id"]
    assert body["timing_ms"]["total"] >= body["timing_ms"]["device"] >= 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_the_three_formats_are_read_whatever_the_content_type_says(ask, kind):
    answer = await ask("/classify/paint", content=picture("blue", kind=kind), headers=PNG)
    assert best(answer.json()["results"][0]) == "blue"


async def test_a_body_without_content_type_is_taken_as_an_image(ask):
    assert (await ask("/classify/paint", content=picture())).status_code == 200


async def test_several_files_come_as_multipart_and_keep_their_order_and_names(ask):
    files = [("images", (f"{name}.png", picture(name))) for name in ("blue", "red", "green")]
    body = (await ask("/classify/paint", files=files)).json()
    assert [(one["index"], one["name"], best(one)) for one in body["results"]] == [
        (0, "blue.png", "blue"),
        (1, "red.png", "red"),
        (2, "green.png", "green"),
    ]


async def test_images_come_as_base64_in_json(ask):
    images = [{"b64": base64.b64encode(picture(name)).decode()} for name in ("blue", "red")]
    body = (await ask("/classify/paint", json={"images": images})).json()
    assert [best(one) for one in body["results"]] == ["blue", "red"]


async def test_one_bad_image_fails_alone(ask):
    files = [
        ("images", ("good.png", picture("red"))),
        ("images", ("bad.png", b"GIF89a" + bytes(40))),
        ("images", ("cut.png", picture("red")[:60])),
        ("images", ("also-good.png", picture("blue"))),
    ]
    answer = await ask("/classify/paint", files=files)
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [best(results[0]), best(results[3])] == ["red", "blue"]
    assert (results[1]["error"]["code"], results[1]["error"]["status"]) == ("image_format", 415)
    assert results[2]["error"]["status"] == 422
    assert results[1]["predictions"] == []


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"%PDF-1.7 and so on, long enough", 415, "image_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image_format"),
        (picture()[:60], 422, "image_truncated"),
        (b"", 422, "image_undecodable"),
    ],
    ids=["pdf", "svg", "cut", "empty"],
)
async def test_a_request_whose_only_image_is_bad_fails_as_a_whole(ask, data, status, code):
    answer = await ask("/classify/paint", content=data, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_several_bad_images_fail_as_a_whole_with_a_reason_each(ask):
    answer = await ask("/classify/paint", json={"images": [{"b64": "no base64!"}, {"b64": "aHR0cDovL3g="}]})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "images_rejected")
    assert [(one["index"], one["code"]) for one in body["errors"]] == [(0, "image_base64"), (1, "image_format")]


@pytest.mark.parametrize("link", ["http://169.254.169.254/x.png", "data:text/html;base64,AAAA"])
async def test_an_address_instead_of_an_image_is_refused(ask, link):
    answer = await ask("/classify/paint", json={"images": [{"b64": link}]})
    assert (answer.status_code, answer.json()["code"]) == (422, "image_base64")


async def test_base64_is_read_as_browsers_mail_and_url_encoders_write_it(ask):
    data = picture("green")
    written = [
        f"data:image/png;base64,{base64.b64encode(data).decode()}",
        base64.encodebytes(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        base64.b64encode(data).decode() + "\n",
    ]
    body = json.dumps({"images": [{"b64": text} for text in written]}).encode("utf-8-sig")
    answer = await ask("/classify/paint", content=body, headers={"content-type": "application/json"})
    assert [best(one) for one in answer.json()["results"]] == ["green"] * 4


async def test_a_broken_base64_string_fails_alone_and_is_named(ask):
    images = [{"b64": base64.b64encode(picture("red")).decode()}, {"b64": "AA!A"}]
    good, bad = (await ask("/classify/paint", json={"images": images})).json()["results"]
    assert best(good) == "red"
    assert bad["error"]["code"] == "image_base64"
    assert "images[1].b64" in bad["error"]["detail"]
    assert "'!' at position 2" in bad["error"]["detail"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ('{"image": []}', "`image`"),
        ('{"images": [{"b64": ""}, {"base64": ""}]}', "`base64` - at `$.images[1]`"),
        ('{"images": [{"b64": ""}, "text"]}', "$.images[1]"),
        ('{"images": [{"b64": 1}]}', "images[0].b64"),
        ('{"images": [{"b64": ""} {', "byte 24"),
        ('{"images": [{"b64": ""}, {"b64": ""}], "images" : [{"b64": ""}]}', "more than once"),
        ('{"images": [{"b64": "", "b64": ""}]}', "more than once"),
    ],
)
async def test_json_that_is_not_understood_names_the_key_the_index_or_the_byte(ask, body, named):
    answer = await ask("/classify/paint", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert named in answer.json()["detail"]


async def test_boundaries_that_end_no_part_are_limited_too(ask):
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = part + b"\r\n--x-" * 5_000 + b"\r\n--x--"
    answer = await ask("/classify/paint", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"json": {"images": []}}, 422, "request_invalid"),
        ({"json": {"image": "x"}}, 422, "request_invalid"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "request_invalid"),
        ({"files": [("image", ("a.png", b"x"))]}, 422, "request_invalid"),
        ({"files": [("images", (f"{n}.png", b"x")) for n in range(17)]}, 413, "too_many_images"),
        ({"files": [("images", (f"{n}.png", b"x")) for n in range(40)]}, 413, "too_many_images"),
        ({"json": {"images": [{"b64": ""}] * 17}}, 413, "too_many_images"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 422, "request_invalid"),
        ({"data": {"images": "text"}}, 415, "unsupported_media"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media"),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "unsupported_media"),
    ],
)
async def test_a_body_that_cannot_be_understood_is_refused_with_its_code(ask, options, status, code):
    answer = await ask("/classify/paint", **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("top_k=0", "request_invalid"),
        ("top_k=101", "request_invalid"),
        ("top_k=many", "request_invalid"),
        ("threshold=2", "request_invalid"),
        ("stack=ensemble", "request_invalid"),
        ("timeout_ms=30001", "request_invalid"),
        ("topk=3", "request_invalid"),
        ("version=0", "request_invalid"),
        ("labels=red,red", "label_invalid"),
        ("labels=red,RED", "label_invalid"),
        ("labels=light_red,light red", "label_invalid"),
        ("labels=caf%C3%A9,cafe%CC%81", "label_invalid"),
        ("labels=%EF%BD%81,a", "label_invalid"),
        ("labels=caf%E9", "request_invalid"),
        ("labels=%ED%A0%80", "request_invalid"),
        ("labels=red,,blue", "label_invalid"),
        ("labels=" + "x" * 129, "label_invalid"),
        ("labels=a%00b", "label_invalid"),
        ("labels=" + ",".join(f"l{n}" for n in range(257)), "too_many_labels"),
        ("labels=" + "x" * 100, "text_too_long"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused_with_422(ask, query, code):
    answer = await ask(f"/classify/paint?{query}", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["request_id"]


async def test_top_k_and_threshold_bound_the_answer(ask):
    body = (await ask("/classify/paint?top_k=2", content=picture())).json()
    assert len(body["results"][0]["predictions"]) == 2
    body = (await ask("/classify/paint?threshold=0.9", content=picture("red"))).json()
    assert [one["label"] for one in body["results"][0]["predictions"]] == ["red"]


async def test_probabilities_fall_and_sum_to_one_over_all_classes(ask):
    body = (await ask("/classify/paint?top_k=100", content=picture())).json()
    values = [one["probability"] for one in body["results"][0]["predictions"]]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)


async def test_a_broken_label_is_named_by_its_position(ask):
    body = (await ask("/classify/paint?labels=white,green,,red", content=picture())).json()
    assert (body["code"], body["field"]) == ("label_invalid", "labels[2]")
    assert "labels[2]" in body["detail"]


async def test_labels_are_normalized_as_class_names(ask):
    body = (await ask("/classify/paint?labels=white_%20warm,green", content=picture("white"))).json()
    assert {one["label"] for one in body["results"][0]["predictions"]} == {"white warm", "green"}


@pytest.mark.parametrize("query", ["labels=white,green", "labels=white&labels=green", "labels=_white,%20green"])
async def test_other_labels_replace_the_classes_of_the_bundle(ask, query):
    body = (await ask(f"/classify/paint?{query}", content=picture("white"))).json()
    assert [one["label"] for one in body["results"][0]["predictions"]] == ["white", "green"]


async def test_a_comma_inside_one_of_several_labels_stays(ask):
    body = (await ask("/classify/paint?labels=white, warm&labels=green", content=picture("white"))).json()
    assert {one["label"] for one in body["results"][0]["predictions"]} == {"white, warm", "green"}


async def test_the_text_features_of_labels_are_made_once_per_digest(serve, store, model):
    async with serve() as client:
        for _ in range(3):
            await client.post("/classify/paint?labels=white,green", content=picture())
        assert model.n_encoded_texts == 2
        await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=2))
        await client.post("/classify/paint?labels=white,green", content=picture())
    assert model.n_encoded_texts == 4


async def test_the_boost_stack_leaves_the_adapting_prompts_out(serve, store):
    async with serve() as client:
        body = (await client.post("/classify/paint?stack=boost", content=picture("green"))).json()
        assert (body["stack"], best(body["results"][0])) == ("boost", "green")
        await client.post("/domains/plain/versions?activate=true", content=colour_bundle("plain", boost=False))
        answer = await client.post("/classify/plain?stack=boost", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (422, "stack_unsupported")


async def test_an_older_version_answers_when_it_is_asked_for(serve, store):
    added = store.add("paint", colour_bundle(names=("white", "red")))
    store.activate("paint", added.version)
    async with serve() as client:
        new = (await client.post("/classify/paint", content=picture("white"))).json()
        old = (await client.post("/classify/paint?version=1", content=picture("green"))).json()
        missing = await client.post("/classify/paint?version=9", content=picture())
    assert (new["version"], best(new["results"][0])) == (2, "white")
    assert (old["version"], best(old["results"][0])) == (1, "green")
    assert (missing.status_code, missing.json()["code"]) == (404, "version_not_found")


@pytest.mark.parametrize("name", ["nowhere", "UPPER", "..%2f..%2fetc", "a" * 200, "con", "%00"])
async def test_an_unknown_domain_is_404_with_and_without_version(ask, name):
    for query in ("", "?version=1"):
        answer = await ask(f"/classify/{name}{query}", content=picture())
        assert (answer.status_code, answer.json()["code"]) in {(404, "domain_not_found"), (404, "not_found")}


async def test_a_domain_without_a_live_version_says_so(serve, store):
    store.add("draft", colour_bundle("draft"))
    async with serve() as client:
        answer = await client.post("/classify/draft", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (404, "domain_not_live")


async def test_images_of_two_domains_share_one_forward(serve, model):
    async with serve() as client:
        model.batches.clear()
        model.gate.clear()
        calls = []
        for domain in ("paint", "ink", "paint", "ink", "paint"):
            calls.append(asyncio.ensure_future(client.post(f"/classify/{domain}", content=picture("red"))))
            if len(calls) == 1:
                await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        model.gate.set()
        answers = await asyncio.gather(*calls)
    assert [best(answer.json()["results"][0]) for answer in answers] == ["red"] * 5
    assert [len(batch) for batch in model.batches] == [1, 4]
    assert len(set(model.batches[1])) == 2


async def test_a_failing_forward_fails_its_batch_only_and_tells_nothing(serve, model):
    async with serve() as client:
        model.fail_with = RuntimeError("secret at 0x7f0000 in a private path")
        failed = await client.post("/classify/paint", content=picture())
        fine = await client.post("/classify/paint", content=picture())
    assert (failed.status_code, failed.json()["code"]) == (500, "inference_failed")
    assert "0x7f" not in failed.text
    assert "private" not in failed.text
    assert fine.status_code == 200


async def test_a_lost_device_makes_the_service_unready(serve, model):
    async with serve() as client:
        model.lost_with = model.fail_with = RuntimeError("CUDA error: an illegal memory access was encountered")
        failed = await client.post("/classify/paint", content=picture())
        after = await client.post("/classify/paint", content=picture())
        probes = [(await client.get(path)).status_code for path in ("/livez", "/readyz")]
    assert (failed.status_code, failed.json()["code"]) == (503, "device_lost")
    assert after.status_code == 503
    assert probes == [503, 503]


async def test_work_for_a_client_that_hung_up_never_reaches_the_device(serve, model):
    async with serve() as client:
        model.gate.clear()
        model.batches.clear()
        first = asyncio.ensure_future(client.post("/classify/paint", content=picture()))
        await asyncio.sleep(0.2)
        messages = asyncio.Queue()
        await messages.put({"type": "http.request", "body": picture(), "more_body": False})
        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/classify/ink", "raw_path": b"/classify/ink",
            "headers": [], "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("c", 1),
            "root_path": "", "asgi": {"version": "3.0"}, "query_string": b"",
        }  # fmt: skip
        gone = asyncio.ensure_future(client.app(scope, messages.get, send))
        await asyncio.sleep(0.2)
        await messages.put({"type": "http.disconnect"})
        await asyncio.wait_for(gone, 5)
        model.gate.set()
        assert (await first).status_code == 200
        assert client.context.batcher.n_queued == 0
    assert "ink" not in [domain for batch in model.batches for domain in batch]
    assert sent[0]["status"] == 499


async def test_a_request_keeps_the_version_it_pinned_while_another_goes_live(serve, model):
    async with serve() as client:
        model.gate.clear()
        call = asyncio.ensure_future(client.post("/classify/paint", content=picture("red")))
        await asyncio.sleep(0.2)
        publishing = asyncio.ensure_future(
            client.post("/domains/paint/versions?activate=true", content=colour_bundle(names=("white", "blue")))
        )
        await asyncio.sleep(0.2)
        model.gate.set()
        old, published = await asyncio.gather(call, publishing)
        new = await client.post("/classify/paint", content=picture("white"))
    assert published.status_code == 201
    assert (old.json()["version"], best(old.json()["results"][0])) == (1, "red")
    assert (new.json()["version"], best(new.json()["results"][0])) == (2, "white")


async def test_everything_that_touches_the_device_runs_on_one_thread(serve, model):
    async with serve() as client:
        await asyncio.gather(*(client.post("/classify/paint", content=picture()) for _ in range(5)))
        await client.post("/domains/paint/versions?activate=true", content=colour_bundle(seed=3))
    assert len(model.threads) == 1
    assert all(name.startswith("device") for name in model.threads)


async def test_an_unexpected_error_is_a_problem_that_says_nothing(serve, monkeypatch):
    async with serve() as client:

        def explode(_):
            raise KeyError("/etc/passwd at 0x7f00")

        monkeypatch.setattr(client.context.table, "pin", explode)
        answer = await client.post("/classify/paint", content=picture())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "passwd" not in answer.text
    assert isinstance(answer, httpx.Response)
