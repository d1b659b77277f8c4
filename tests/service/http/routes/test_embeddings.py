"""Embeddings in the form of OpenAI's API."""

import base64
import json

import numpy as np
import pytest

from service.access.key_file import add_key, read_keys
from tests.service.fakes import picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True
PATH = "/v1/embeddings"


def url_of(colour):
    return f"data:image/png;base64,{base64.b64encode(picture(colour)).decode()}"


@pytest.fixture
def ask(serve):
    """Post to a running application once."""

    async def post(**options):
        async with serve() as client:
            return await client.post(PATH, **options)

    return post


async def test_an_embedding_is_that_of_a_classify_request(serve, store):
    async with serve() as client:
        answer = await client.post(PATH, json={"model": "paint", "input": [url_of("red"), url_of("blue")]})
        files = {"images": ("a.png", picture("red"))}
        same = await client.post("/classify/paint?return=embedding", files=files)
    body = answer.json()
    assert answer.status_code == 200, body
    assert (body["object"], body["model"], body["usage"]) == ("list", "paint", {"prompt_tokens": 0, "total_tokens": 0})
    assert [(one["object"], one["index"]) for one in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert body["data"][0]["embedding"] == same.json()["results"][0]["embedding"]
    assert np.linalg.norm(body["data"][1]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert answer.headers["x-bundle-digest"] == store.live("paint").digest


async def test_base64_is_the_same_embedding_in_float32(serve):
    async with serve() as client:
        one = (await client.post(PATH, json={"model": "paint", "input": url_of("red")})).json()
        packed = {"model": "paint", "input": url_of("red"), "encoding_format": "base64", "modality": "image"}
        same = (await client.post(PATH, json=packed)).json()
    decoded = np.frombuffer(base64.b64decode(same["data"][0]["embedding"]), "<f4")
    assert decoded.tolist() == one["data"][0]["embedding"]


RED = url_of("red")
REJECTED = {
    "text": ({"model": "paint", "input": "a red square"}, 422, "request_invalid", "must be a data URL"),
    "a link": (
        {"model": "paint", "input": ["http://127.0.0.1/x.png"]},
        422,
        "request_invalid",
        "links are unsupported",
    ),
    "no base64": ({"model": "paint", "input": "data:image/png;base64,!"}, 422, "image_base64", "expected base64"),
    "tokens": ({"model": "paint", "input": [1, 2]}, 422, "request_invalid", "input[0] must be a data URL"),
    "no images": ({"model": "paint", "input": []}, 422, "request_invalid", "no images"),
    "an object": ({"model": "paint", "input": {}}, 422, "request_invalid", "Expected JSON of the form"),
    "too many": ({"model": "paint", "input": [RED] * 17}, 413, "too_many_images", "at most 16"),
    "no model": ({"input": RED}, 422, "request_invalid", "model"),
    "an unknown model": ({"model": "nowhere", "input": RED}, 404, "domain_not_found", "nowhere"),
    "a model with another name": ({"model": "CLIP/ViT", "input": RED}, 404, "domain_not_found", "no domain"),
    "dimensions": ({"model": "paint", "input": RED, "dimensions": 2}, 422, "request_invalid", "dimensions"),
    "another format": ({"model": "paint", "input": RED, "encoding_format": "int8"}, 422, "request_invalid", "int8"),
    "one bad image": (
        {"model": "paint", "input": [RED, "data:image/png;base64,JVBERi0xLjcgYW5kIG1vcmU="]},
        415,
        "image_format",
        "Image 1: ",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
async def test_errors_have_the_form_of_openai_and_our_codes(ask, case):
    sent, status, code, expected = REJECTED[case]
    answer = await ask(json=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error"), error
    assert expected in error["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_a_repeated_key_is_rejected(ask):
    content = f'{{"model": "ink", "model": "paint", "input": {json.dumps(RED)}}}'
    answer = await ask(content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, "more than once" in answer.json()["error"]["message"]) == (422, True)


async def test_a_key_needs_the_scope_classify_and_the_domain(serve, tmp_path):
    key = add_key(tmp_path / "keys.json", ["classify"], ["paint"])
    headers = {"authorization": f"Bearer {key}"}
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        answers = [
            await client.post(PATH, json={"model": "paint", "input": RED}),
            await client.post(PATH, json={"model": "paint", "input": RED}, headers=headers),
            await client.post(PATH, json={"model": "ink", "input": RED}, headers=headers),
        ]
    assert [answer.status_code for answer in answers] == [401, 200, 403]
    assert [answer.json()["error"]["code"] for answer in answers if answer.status_code != 200] == [
        "unauthorized",
        "denied",
    ]
