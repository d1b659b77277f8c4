"""`If-Bundle-Digest`: an answer by one of the listed bundles, or none."""

import base64

import pytest

from tests.service.fakes import picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

OTHER = "sha256:" + "0" * 64
TEXT = base64.b64encode(picture()).decode()
INPUT = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
REQUESTS = {
    "/classify/paint": {"content": picture()},
    "/classify": {"json": {"images": [{"domain": "paint", "b64": TEXT}]}},
    "/v2/models/paint/infer": {"json": {"inputs": [INPUT]}},
    "/v1/embeddings": {"json": {"model": "paint", "input": f"data:image/png;base64,{TEXT}"}},
}


@pytest.mark.parametrize("path", REQUESTS)
async def test_a_request_is_answered_by_a_listed_bundle_only(serve, store, path):
    live = store.live("paint").digest
    accepted = {"the live one": live, "in quotes": f'"{live}"', "one of several": f"{OTHER}, {live}"}
    async with serve() as client:

        async def status(value):
            return (await client.post(path, headers={"If-Bundle-Digest": value}, **REQUESTS[path])).status_code

        assert {name: await status(value) for name, value in accepted.items()} == dict.fromkeys(accepted, 200)
        assert await status(OTHER) == 412


async def test_a_refusal_names_the_bundle_that_is_live(serve, store):
    async with serve() as client:
        answer = await client.post("/classify/paint", content=picture(), headers={"If-Bundle-Digest": OTHER})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    assert store.live("paint").digest in answer.json()["detail"]


async def test_one_domain_of_another_bundle_refuses_a_mixed_request(serve, store):
    images = [{"domain": domain, "b64": TEXT} for domain in ("paint", "ink")]
    digests = [store.live(domain).digest for domain in ("paint", "ink")]
    async with serve() as client:

        async def status(*listed):
            headers = {"If-Bundle-Digest": ",".join(listed)}
            return (await client.post("/classify", json={"images": images}, headers=headers)).status_code

        assert (await status(*digests), await status(digests[0])) == (200, 412)


@pytest.mark.parametrize("value", ["", "newest", "sha256:12", f"{OTHER},", OTHER.upper()])
async def test_a_header_that_is_no_list_of_digests_is_refused(serve, value):
    async with serve() as client:
        answer = await client.post("/classify/paint", content=picture(), headers={"If-Bundle-Digest": value})
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
