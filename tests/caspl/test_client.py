import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image

import caspl
from caspl import client as client_module
from caspl.errors import (
    AccessError,
    ConflictError,
    ImageError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    TransportError,
)
from prompt_store.manifest import Calibration
from tests.service.fakes import colour_bundle, picture


@pytest.fixture
def connect(monkeypatch):
    """A client of a function that stands for the server, and the requests the function received."""
    pauses = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)

    def connected(handler, **options):
        seen = []

        def record(request):
            seen.append(request)
            return handler(len(seen), request)

        made = caspl.Client("http://test", transport=httpx.MockTransport(record), **options)
        made.seen, made.pauses = seen, pauses
        return made

    return connected


def n_images(request):
    return request.content.count(b'name="images"')


def answer(_, request):
    one = {"predictions": [{"label": "red", "class_id": 0, "probability": 0.9}], "error": None, "notes": ["cmyk"]}
    body = {"domain": "paint", "version": 3, "digest": "sha256:x", "results": [one] * n_images(request)}
    return httpx.Response(200, json=body)


def test_sixteen_images_are_sent_per_request_and_results_keep_their_order(connect):
    client = connect(answer, api_key="pk_x")
    results = client.classify([picture()] * 20, "paint", top_k=3, labels=["red", "blue"], version=3)

    assert [n_images(request) for request in client.seen] == [16, 4]
    assert client.seen[0].headers["authorization"] == "Bearer pk_x"
    assert str(client.seen[0].url) == "http://test/classify/paint?top_k=3&labels=red&labels=blue&version=3"
    assert (
        results
        == [caspl.Classification("paint", 3, "sha256:x", (caspl.Prediction("red", 0, 0.9),), notes=("cmyk",))] * 20
    )


def test_abstention_and_embeddings_are_requested_and_read(connect):
    def unsure(_, request):
        one = {"predictions": [{"label": "red", "class_id": 0, "probability": 0.4}], "error": None, "notes": []}
        one |= {"abstained": True, "label": None, "embedding": [0.6, 0.8]}
        failed = {"predictions": [], "abstained": False, "label": None, "embedding": None}
        failed |= {"error": {"title": "Damaged image", "code": "image_undecodable", "status": 422}}
        body = {"domain": "paint", "version": 3, "digest": "sha256:x", "results": [one, failed]}
        return httpx.Response(200, json=body)

    client = connect(unsure)
    result, failed = client.classify([picture()] * 2, "paint", abstain=0.05, embedding=True)

    assert str(client.seen[0].url) == "http://test/classify/paint?top_k=5&abstain=0.05&return=embedding"
    assert (result.label, result.abstained, result.probability) == (None, True, 0.4)
    assert result.embedding.dtype == np.float32
    np.testing.assert_allclose(result.embedding, [0.6, 0.8])
    assert (failed.abstained, failed.embedding, failed.error.code) == (False, None, "image_undecodable")


def test_large_images_are_spread_over_requests_within_the_default_limit(connect):
    client = connect(answer)
    client.classify([bytes(9 * 2**20)] * 6 + [picture()], "paint")

    assert [n_images(request) for request in client.seen] == [3, 4]
    assert all(len(request.content) < 32 * 2**20 for request in client.seen)


def test_a_request_is_halved_when_the_server_has_lower_limits(connect):
    def at_most_two(number, request):
        if n_images(request) > 2:
            return httpx.Response(413, json={"title": "Request too large", "code": "too_many_images"})
        return answer(number, request)

    client = connect(at_most_two)

    assert len(client.classify([picture()] * 5, "paint")) == 5
    assert [n_images(request) for request in client.seen] == [5, 2, 3, 1, 2]


def test_pixels_are_sent_as_png(connect):
    client = connect(answer)
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    client.classify([pixels], "paint")

    body = client.seen[0].content
    sent = body[body.index(b"\x89PNG") : body.index(b"IEND") + 8]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), pixels)


@pytest.mark.parametrize(
    ("status", "code"), [(415, "image_format"), (422, "image_undecodable"), (413, "image_pixels"), (413, "too_large")]
)
def test_a_refused_image_has_its_error_in_its_result(connect, status, code):
    client = connect(lambda *_: httpx.Response(status, json={"title": "No", "code": code, "detail": "why"}))
    (result,) = client.classify([picture()], "paint")

    assert (result.error.code, result.error.detail, result.error.status) == (code, "why", status)
    with pytest.raises(caspl.CasplError, match="No: why"):
        _ = result.label


def test_when_all_images_are_refused_each_has_its_own_error(connect):
    problems = [{"title": "No", "code": code, "detail": "", "status": 415} for code in ("image_format", "image_bytes")]
    client = connect(lambda *_: httpx.Response(422, json={"code": "images_rejected", "errors": problems}))
    results = client.classify([picture()] * 2, "paint")

    assert [result.error.code for result in results] == ["image_format", "image_bytes"]
    assert all(isinstance(result.error, ImageError) for result in results)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AccessError),
        (403, AccessError),
        (404, NotFoundError),
        (409, ConflictError),
        (412, ConflictError),
        (422, InvalidRequestError),
        (429, OverloadedError),
        (500, ServerError),
        (503, OverloadedError),
        (504, ServerError),
    ],
)
def test_a_problem_becomes_the_error_of_its_status(connect, status, kind):
    problem = {"title": "Title", "code": "some_code", "detail": "Detail.", "request_id": "req-1"}
    client = connect(lambda *_: httpx.Response(status, json=problem))

    with pytest.raises(kind, match=r"Title: Detail\.") as caught:
        client.rollback("paint")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.request_id) == ("some_code", status, "req-1")


def test_a_busy_server_gets_the_request_again_after_its_pause(connect):
    client = connect(
        lambda n, request: answer(n, request) if n == 3 else httpx.Response(429, headers={"retry-after": "7"})
    )

    assert len(client.classify([picture()], "paint")) == 1
    assert client.pauses == [7.0, 7.0]


def test_an_overloaded_server_is_an_error_after_all_attempts(connect):
    client = connect(lambda *_: httpx.Response(503, headers={"retry-after": "999"}), max_attempts=2)

    with pytest.raises(OverloadedError):
        client.domains()
    assert client.pauses == [10.0]


@pytest.mark.parametrize("text", ["<html>", "[]", '{"hello": 1}'])
def test_an_answer_from_something_else_is_reported_as_such(connect, text):
    with pytest.raises(TransportError, match="is not a CasPL Serve response"):
        connect(lambda *_: httpx.Response(200, text=text)).classify([picture()], "paint")


def test_an_unreachable_server_is_named(connect):
    def refuse(*_):
        raise httpx.ConnectError("refused")

    with pytest.raises(TransportError, match="Cannot reach http://test: refused"):
        connect(refuse).domains()


def test_names_are_quoted_in_paths(connect):
    client = connect(lambda *_: httpx.Response(404, json={}))

    with pytest.raises(NotFoundError):
        client.rollback("../admin?x")
    assert client.seen[0].url.raw_path == b"/domains/..%2Fadmin%3Fx/rollback"


def test_a_domain_is_published_activated_classified_with_and_rolled_back(serve, tmp_path):
    async def life():
        async with serve() as http, caspl.AsyncClient("http://localhost", transport=http._transport) as client:
            bundle = tmp_path / "paint.safetensors"
            bundle.write_bytes(colour_bundle(seed=1))
            published = await client.publish(bundle)
            assert (published.version, published.is_new, published.is_live) == (2, True, False)
            assert (await client.publish(bundle)).is_new is False
            live = {found.name: found for found in await client.domains()}["paint"]
            with pytest.raises(ConflictError):
                await client.activate("paint", 2, expected_digest=published.digest)
            assert (await client.activate("paint", 2, expected_digest=live.digest)).version == 2
            results = await client.classify([picture("red"), picture("blue"), b"?"], ["paint", "ink", "paint"])
            assert [result.domain for result in results] == ["paint", "ink", "paint"]
            assert [result.version for result in results[:2]] == [2, 1]
            assert [result.label for result in results[:2]] == ["red", "blue"]
            assert isinstance(results[2].error, ImageError)
            assert (await client.rollback("paint")).version == 1
            with pytest.raises(NotFoundError):
                await client.classify([picture()], "no-such-domain")
            assert (await client.publish(colour_bundle(seed=2), activate=True)).is_live

    asyncio.run(life())


def test_the_asynchronous_client_gets_abstentions_and_embeddings_from_a_running_service(serve):
    async def ask():
        async with serve() as http, caspl.AsyncClient("http://localhost", transport=http._transport) as client:
            calibration = Calibration(temperature=1.0, abstain={"0.05": 0.9})
            await client.publish(colour_bundle(calibration=calibration), activate=True)
            images = [picture("red"), picture((255, 200, 0))]
            sure, unsure = await client.classify(images, "paint", abstain=0.05, embedding=True)
            assert (sure.label, sure.abstained) == ("red", False)
            assert (unsure.label, unsure.abstained, unsure.predictions[0].label) == (None, True, "red")
            np.testing.assert_allclose(sure.embedding, [1, 0, 0], atol=1e-4)
            for options in ({"abstain": 0.01}, {"abstain": 0.05, "labels": ["red", "blue"]}):
                with pytest.raises(InvalidRequestError) as failed:
                    await client.classify(images, "paint", **options)
                assert failed.value.code == "abstain_unsupported"

    asyncio.run(ask())
