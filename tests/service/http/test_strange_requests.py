"""Requests nobody would send on purpose: every one gets a clean refusal or an honest answer, never a 500."""

import random

import httpx
import pytest

from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

N_REQUESTS = 400
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
PATHS = (
    "/classify/paint", "/classify/%ff", "/classify/%00", "/classify/a/b", "/classify/" + "a" * 300, "/domains",
    "/domains/paint", "/domains/paint/versions", "/domains/paint/live", "/domains/paint/rollback",
    "/domains/paint/versions/1/content", "/domains/paint/versions/-1", "/domains/paint/versions/99999999999999999999",
    "/domains/%ff/live", "/info", "//", "/readyz",
)  # fmt: skip
QUERIES = (
    "", "labels=%ff", "labels=%ed%a0%80", "labels=a&labels=b", "labels=", "top_k=1e3", "top_k=" + "9" * 40, "top_k=",
    "threshold=nan", "threshold=inf", "version=" + "9" * 30, "timeout_ms=1", "activate=maybe", "activate=true",
    "stack=boost", "stack=", "unknown=1",
)  # fmt: skip
TYPES = (
    "image/png", "application/json", "application/octet-stream", "text/plain", "", "multipart/form-data",
    "multipart/form-data; boundary=", "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=x; charset=utf-7",
)  # fmt: skip
PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nzz\r\n--x--'


def strange_bodies(rng):
    image = picture(kind=rng.choice(("PNG", "JPEG", "WEBP")))
    body = rng.choice(
        (b"", rng.randbytes(100), image, image[: rng.randrange(len(image))], colour_bundle(seed=5), b'{"version":1}',
         b'{"version":1e999}', b'{"images":[{"b64":"AAAA"}]}', b"[" * 2_000, PART)
    )  # fmt: skip
    if body and rng.random() < 0.3:
        at = rng.randrange(len(body))
        body = body[:at] + rng.randbytes(1) + body[at + 1 :]
    return body


@pytest.mark.parametrize("seed", range(2))
async def test_no_request_gets_a_500_or_an_answer_in_another_shape(serve, seed):
    rng = random.Random(seed)  # noqa: S311
    async with serve() as client:
        for _ in range(N_REQUESTS):
            method = rng.choice(METHODS) if rng.random() < 0.5 else "POST"
            url = httpx.URL(rng.choice(PATHS) + "?" + rng.choice(QUERIES))
            headers = {"content-type": rng.choice(TYPES), "if-match": rng.choice(("*", '"x"', "x", '"', 'W/"a"'))}
            answer = await client.request(method, url, content=strange_bodies(rng), headers=headers)
            sent = (method, str(url), headers, answer.text[:300])
            assert answer.status_code < 500 or answer.json()["code"] == "deadline_exceeded", sent
            if answer.is_error:
                assert answer.headers["content-type"] == "application/problem+json", sent
                assert not any(mark in answer.text for mark in ("0x", "Traceback", "BytesIO")), sent
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "unicode_escape", "utf-16", "zlib", "unknown"])
@pytest.mark.parametrize("path", ["/classify", "/classify/paint"])
async def test_a_charset_that_rejects_names_is_not_a_fault_of_the_service(serve, path, charset):
    async with serve() as client:
        kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        answer = await client.post(path, content=PART.replace(b"images", b"images\\ud800"), headers=kind)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
