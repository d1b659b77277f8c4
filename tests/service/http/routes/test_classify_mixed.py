"""One request about several domains: a domain per image, by name of the multipart field or in JSON."""

import asyncio
import base64

import pytest

from service.access.key_file import add_key, read_keys
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


def best(result):
    return result["predictions"][0]["label"]


def files(*sent):
    return [(domain, (f"{place}-{colour}.png", picture(colour))) for place, (domain, colour) in enumerate(sent)]


def as_json(*sent):
    images = [{"domain": domain, "b64": base64.b64encode(picture(colour)).decode()} for domain, colour in sent]
    return {"images": images}


async def test_every_image_is_answered_by_its_own_domain_in_the_order_they_were_sent(serve, store):
    sent = [("ink", "blue"), ("paint", "green"), ("ink", "red"), ("paint", "blue")]
    async with serve() as client:
        answers = [
            await client.post("/classify", files=files(*sent)),
            await client.post("/classify", json=as_json(*sent)),
        ]
    for answer in answers:
        body = answer.json()
        assert answer.status_code == 200, body
        assert [(one["index"], one["domain"], best(one)) for one in body["results"]] == [
            (place, domain, colour) for place, (domain, colour) in enumerate(sent)
        ]
        for one in body["results"]:
            assert (one["version"], one["digest"]) == (1, store.live(one["domain"]).digest)
        assert body["timing_ms"]["total"] >= body["timing_ms"]["device"] >= 0
        assert "server-timing" in answer.headers
    assert [one["name"] for one in answers[0].json()["results"]] == [name for _, (name, _) in files(*sent)]


async def test_a_mixed_request_is_answered_as_its_images_are_alone(serve):
    sent = [("ink", "blue"), ("paint", "green"), ("paint", "red")]
    async with serve() as client:
        mixed = (await client.post("/classify?top_k=2&threshold=0.01", json=as_json(*sent))).json()["results"]
        for (domain, colour), together in zip(sent, mixed, strict=True):
            path = f"/classify/{domain}?top_k=2&threshold=0.01"
            (alone,) = (await client.post(path, content=picture(colour))).json()["results"]
            assert together["predictions"] == alone["predictions"]


async def test_all_images_of_a_request_share_one_batch_whatever_their_domains(serve, model):
    async with serve() as client:
        model.batches.clear()
        await client.post("/classify", files=files(("ink", "blue"), ("paint", "green"), ("ink", "red")))
    assert [len(batch) for batch in model.batches] == [3]


async def test_an_unknown_domain_and_a_bad_image_fail_alone(serve):
    sent = files(("paint", "green"), ("nowhere", "red"), ("../etc", "red"))
    sent += [("ink", ("bad.png", b"GIF89a" + bytes(40)))]
    async with serve() as client:
        answer = await client.post("/classify", files=sent)
        metrics = client.context.metrics.images
        counted = {sample.labels["domain"] for sample in metrics.collect()[0].samples}
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert best(results[0]) == "green"
    assert [one["error"] and one["error"]["code"] for one in results] == [
        None,
        "domain_not_found",
        "domain_not_found",
        "image_format",
    ]
    assert [(one["domain"], one["version"]) for one in results] == [
        ("paint", 1),
        ("nowhere", None),
        (None, None),
        ("ink", 1),
    ]
    assert counted <= {"paint", "ink"}, "what a client invents does not become a label"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ([("nowhere", "red")], 404, "domain_not_found"),
        ([("nowhere", "red"), ("elsewhere", "red")], 404, "domain_not_found"),
    ],
)
async def test_a_request_of_which_nothing_can_be_answered_fails_as_a_whole(serve, sent, status, code):
    async with serve() as client:
        answer = await client.post("/classify", files=files(*sent))
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_half_characters_in_names_harm_nobody(serve):
    def part(field, filename, data):
        head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'
        return head.encode() + data + b"\r\n"

    body = part("ink", "+2AA-", picture("red")) + part("+2AA-", "b", picture("red")) + b"--x--\r\n"
    async with serve() as client:
        headers = {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}
        answer = await client.post("/classify", content=body, headers=headers)
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [one["domain"] for one in results] == ["ink", None]
    assert best(results[0]) == "red"
    assert results[1]["error"]["code"] == "domain_not_found"


async def test_bad_images_of_all_domains_are_listed_by_their_position(serve):
    async with serve() as client:
        answer = await client.post(
            "/classify", files=[("ink", ("a", b"x" * 40)), ("paint", ("b", picture()[:60])), ("ink", ("c", b""))]
        )
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "images_rejected")
    assert [(one["index"], one["code"]) for one in body["errors"]] == [
        (0, "image_format"),
        (1, "image_truncated"),
        (2, "image_undecodable"),
    ]


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"content": picture(), "headers": {"content-type": "image/png"}}, 415, "unsupported_media"),
        ({"json": {"images": [{"b64": ""}]}}, 422, "request_invalid"),
        ({"json": {"images": []}}, 422, "request_invalid"),
        ({"json": {"images": [{"domain": "ink", "b64": "", "version": 1}]}}, 422, "request_invalid"),
        ({"data": {"ink": "text"}}, 415, "unsupported_media"),
        ({"files": [("ink", (f"{n}.png", b"x")) for n in range(17)]}, 413, "too_many_images"),
        ({"json": {"images": [{"domain": "ink", "b64": ""}] * 17}}, 413, "too_many_images"),
        ({"json": as_json(("ink", "red")), "params": {"version": 1}}, 422, "request_invalid"),
        ({"json": as_json(("ink", "red")), "params": {"top_k": 101}}, 422, "request_invalid"),
    ],
)
async def test_a_mixed_body_that_cannot_be_understood_is_refused_with_its_code(serve, options, status, code):
    async with serve() as client:
        answer = await client.post("/classify", **options)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_other_labels_are_chosen_among_in_every_domain(serve):
    async with serve() as client:
        answer = await client.post("/classify?labels=red,green", files=files(("ink", "green"), ("paint", "red")))
    assert [best(one) for one in answer.json()["results"]] == ["green", "red"]


async def test_a_key_for_one_domain_gets_no_answers_from_another(serve, tmp_path):
    key = add_key(tmp_path / "keys.json", ["classify"], ["paint"])
    other = add_key(tmp_path / "keys.json", ["publish"], [])
    sent = files(("paint", "green"), ("ink", "red"))
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        answer = await client.post("/classify", files=sent, headers={"authorization": f"Bearer {key}"})
        denied = await client.post("/classify", files=sent[1:], headers={"authorization": f"Bearer {key}"})
        without_scope = await client.post("/classify", files=sent, headers={"authorization": f"Bearer {other}"})
        unknown = await client.post("/classify", files=sent)
    results = answer.json()["results"]
    assert best(results[0]) == "green"
    assert (results[1]["error"]["code"], results[1]["error"]["status"]) == ("denied", 403)
    assert (results[1]["version"], results[1]["digest"]) == (None, None), "not even which version is live"
    assert [denied.status_code, without_scope.status_code, unknown.status_code] == [403, 403, 401]


async def test_a_mixed_request_keeps_the_versions_it_pinned_while_others_go_live(serve, model):
    async with serve() as client:
        model.gate.clear()
        call = asyncio.ensure_future(client.post("/classify", files=files(("paint", "red"), ("ink", "red"))))
        await asyncio.sleep(0.2)
        publishing = asyncio.ensure_future(
            client.post("/domains/paint/versions?activate=true", content=colour_bundle(names=("white", "blue")))
        )
        await asyncio.sleep(0.2)
        model.gate.set()
        old, published = await asyncio.gather(call, publishing)
        new = await client.post("/classify", files=files(("paint", "white")))
    assert published.status_code == 201
    assert [(one["version"], best(one)) for one in old.json()["results"]] == [(1, "red"), (1, "red")]
    assert [(one["version"], best(one)) for one in new.json()["results"]] == [(2, "white")]
