import asyncio
import errno
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import caspl
from caspl import retries
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


class Clock:
    """Time that passes only in pauses."""

    def __init__(self):
        self.pauses = []

    def monotonic(self):
        return sum(self.pauses)

    def wait(self, pause_s):
        self.pauses.append(pause_s)
        return False


@pytest.fixture
def connect(monkeypatch):
    """A client of a function that stands for the server, and the requests the function received."""
    clock = Clock()
    monkeypatch.setattr(retries, "time", clock)

    def connected(handler, **options):
        seen = []

        def record(request):
            seen.append(request)
            return handler(len(seen), request)

        made = caspl.Client("http://test", transport=httpx.MockTransport(record), **options)
        monkeypatch.setattr(made._is_interrupted, "wait", clock.wait)
        made.seen, made.pauses = seen, clock.pauses
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

    assert sorted(n_images(request) for request in client.seen) == [4, 16]
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

    assert sorted(n_images(request) for request in client.seen) == [3, 4]
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


def test_a_server_that_stays_busy_is_an_error_after_the_stated_time(connect):
    client = connect(lambda *_: httpx.Response(503, headers={"retry-after": "4"}), retry_for_s=10)

    with pytest.raises(OverloadedError):
        client.domains()
    assert client.pauses == [4.0, 4.0]


def test_a_pause_that_ends_after_the_stated_time_is_not_begun(connect):
    client = connect(lambda *_: httpx.Response(503, headers={"retry-after": "999"}), retry_for_s=10)

    with pytest.raises(OverloadedError):
        client.domains()
    assert client.pauses == []


def failing_once_reached(error, n_failures):
    """A server that answers the first request, then fails `n_failures` times with an error or a status."""

    def handle(number, request):
        if not 1 < number <= 1 + n_failures:
            return answer(number, request) if request.method == "POST" else httpx.Response(200, json={"domains": []})
        if isinstance(error, int):
            return httpx.Response(error, json={"title": "Bad gateway"})
        raise error

    return handle


BROKEN = [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"), 502, 504]


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_a_restart_of_the_server_is_survived_with_growing_pauses(connect, error):
    client = connect(failing_once_reached(error, 6))
    client.domains()

    assert client.classify([picture()], "paint")[0].label == "red"
    assert client.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0]


def test_a_server_that_stays_away_is_an_error_after_the_stated_time(connect):
    client = connect(failing_once_reached(httpx.ConnectError("refused"), 999), retry_for_s=60)
    client.domains()

    with pytest.raises(TransportError, match="Cannot reach http://test: refused"):
        client.classify([picture()], "paint")
    assert 55 < sum(client.pauses) <= 60


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), 502, 504], ids=str)
@pytest.mark.parametrize("call", [lambda client: client.rollback("paint"), lambda client: client.fit("paint")])
def test_a_request_that_is_not_idempotent_is_not_retried_if_it_may_have_been_executed(connect, call, error):
    client = connect(failing_once_reached(error, 999))
    client.domains()

    with pytest.raises(caspl.CasplError):
        call(client)
    assert client.pauses == []


def test_a_request_that_was_not_sent_is_always_retried(connect):
    client = connect(failing_once_reached(httpx.ConnectError("refused"), 1))
    client.domains()

    assert client.rollback("paint").version == 3
    assert client.pauses == [0.25]


def test_ctrl_c_ends_the_pauses_of_other_requests(monkeypatch):
    def busy(request):
        if b"raise" in request.content:
            raise KeyboardInterrupt
        return httpx.Response(503, headers={"retry-after": "100"})

    with caspl.Client("http://test", transport=httpx.MockTransport(busy), retry_for_s=1000) as client:
        with pytest.raises(KeyboardInterrupt):
            client.classify([b"raise"] * 16 + [b"?"] * 32, "paint")
        assert not client._is_interrupted.is_set()


@pytest.mark.parametrize("text", ["<html>", "[]", '{"hello": 1}'])
def test_an_answer_from_something_else_is_reported_as_such(connect, text):
    with pytest.raises(TransportError, match="is not a CasPL Serve response"):
        connect(lambda *_: httpx.Response(200, text=text)).classify([picture()], "paint")


def test_an_unreachable_server_is_named_at_once_as_its_address_may_be_wrong(connect):
    def refuse(*_):
        raise httpx.ConnectError("refused")

    client = connect(refuse)
    with pytest.raises(TransportError, match="Cannot reach http://test: refused"):
        client.domains()
    assert client.pauses == []


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    return tmp_path


@pytest.mark.parametrize(("recursive", "names"), [(False, ["a.png", "b.png"]), (True, ["a.png", "b.png", "sub/c.png"])])
def test_the_pictures_of_a_folder_are_classified_in_order(connect, folder, recursive, names):
    client = connect(answer)
    results = list(client.classify_files(folder, "paint", recursive=recursive, top_k=1))

    assert [path for path, _ in results] == [folder / name for name in names]
    assert {result.label for _, result in results} == {"red"}
    assert client.seen[0].url.params["top_k"] == "1"


def test_a_file_that_cannot_be_read_has_an_error_and_the_others_have_results(connect, folder, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", refuse_a(Path.read_bytes))
    results = dict(connect(answer).classify_files(folder, "paint"))

    assert results[folder / "b.png"].label == "red"
    assert results[folder / "a.png"].error.code == "file_unreadable"
    assert str(results[folder / "a.png"].error) == "Cannot read the file: Permission denied."


def refuse_a(read_bytes):
    def read(path):
        if path.name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    return read


def test_files_are_read_as_their_results_are_taken(connect, folder):
    files = [folder / f"{number}.png" for number in range(1000)]
    for path in files:
        path.write_bytes(b"?")
    client = connect(answer)
    results = client.classify_files(files, "paint")
    first = next(results)

    assert first[0] == files[0]
    assert len(client.seen) <= 8
    assert [path for path, _ in results] == files[1:]
    assert len(client.seen) == 63


def test_the_asynchronous_client_classifies_folders_in_order(folder):
    async def classify():
        transport = httpx.MockTransport(lambda request: answer(0, request))
        async with caspl.AsyncClient("http://test", transport=transport) as client:
            return [path async for path, _ in client.classify_files([folder], "paint", recursive=True)]

    assert asyncio.run(classify()) == [folder / name for name in ("a.png", "b.png", "sub/c.png")]


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
