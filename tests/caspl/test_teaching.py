import asyncio
import json
import threading

import httpx
import pytest

import caspl
from caspl import client as client_module
from caspl.errors import ConflictError, ImageError, InvalidRequestError, NotFoundError, ServerError
from caspl.results import AddedExample, Example, Fit, Prediction, Version
from tests.service.fakes import picture

REPORT = {"method": "gda", "accuracy": {"rate": 0.9, "low": 0.8, "high": 0.95}}


class Server:
    """Answers as a server with these limits; the pictures of each request are in `sizes`."""

    def __init__(self, max_images=16, max_request_bytes=32 * 2**20, max_images_of_proxy=99):
        self.limits = {"max_images": max_images, "max_request_bytes": max_request_bytes, "max_timeout_s": 30.0}
        self.max_images_of_proxy = max_images_of_proxy
        self.requests, self.sizes = [], []
        self._n_open, self.most_open = 0, 0
        self._lock, self.gate = threading.Lock(), None

    def __call__(self, request):
        self.requests.append(request)
        if request.url.path == "/info":
            return httpx.Response(200, json={"limits": self.limits})
        with self._lock:
            self._n_open += 1
            self.most_open = max(self.most_open, self._n_open)
        if self.gate:
            self.gate.wait(5)
        answer = self.add(request)
        with self._lock:
            self._n_open -= 1
        return answer

    def add(self, request):
        names = [part.split(b'"')[1].decode() for part in request.content.split(b"form-data; name=")[1:]]
        if len(names) > self.max_images_of_proxy:
            return httpx.Response(413, text="<html>")
        self.sizes.append(len(names))
        added = [self.example(index, name) for index, name in enumerate(names)]
        return httpx.Response(201, json={"domain": "paint", "version": 3, "digest": "sha256:x", "examples": added})

    def example(self, index, name):
        label = None if name == "unlabelled" else name
        best = {"label": "red", "class_id": 0, "probability": 0.9}
        return {"index": index, "id": 7, "status": "added", "label": label, "prediction": best, "error": None}


def connect(handler, **options):
    return caspl.Client("http://test", transport=httpx.MockTransport(handler), **options)


def answering(status, body, seen):
    def handle(request):
        seen.append(request)
        return httpx.Response(status, json=body)

    return connect(handle)


def test_examples_are_sent_under_their_labels_in_requests_within_the_servers_limits():
    server, counted = Server(max_images=3), []
    pictures = [("red", picture()), ("light blue", picture()), (None, picture())] * 3
    added = connect(server).add_examples("paint", pictures, on_added=counted.append)

    assert server.sizes == [3, 3, 3]
    assert {str(request.url) for request in server.requests[1:]} == {
        "http://test/domains/paint/examples?timeout_ms=30000"
    }
    assert sum(counted) == 9
    assert [one.label for one in added] == ["red", "light blue", None] * 3
    assert added[0] == AddedExample(7, "added", "red", Prediction("red", 0, 0.9))


def test_the_bytes_of_a_request_stay_within_the_servers_limit():
    server = Server(max_request_bytes=3 * 2**20)
    connect(server).add_examples("paint", [("red", bytes(2**20 - 1000))] * 5)

    assert sorted(server.sizes) == [1, 2, 2]
    assert all(len(request.content) <= 3 * 2**20 for request in server.requests)


def test_several_requests_are_open_at_a_time_but_no_more_than_four():
    server = Server(max_images=1)
    server.gate = threading.Barrier(client_module.MAX_CONCURRENT)
    connect(server).add_examples("paint", [("red", picture())] * 8)

    assert server.most_open == client_module.MAX_CONCURRENT == 4


def test_an_asynchronous_client_sends_as_many_at_a_time():
    server = Server(max_images=1)
    n_open, most_open = 0, 0

    async def handle(request):
        nonlocal n_open, most_open
        n_open += 1
        most_open = max(most_open, n_open)
        await asyncio.sleep(0.01)
        n_open -= 1
        return server(request)

    async def add():
        async with caspl.AsyncClient("http://test", transport=httpx.MockTransport(handle)) as client:
            return await client.add_examples("paint", [(f"c{index}", picture()) for index in range(9)])

    added = asyncio.run(add())

    assert [one.label for one in added] == [f"c{index}" for index in range(9)]
    assert most_open == 4


def test_a_request_is_halved_where_a_proxy_has_a_lower_limit():
    server = Server(max_images_of_proxy=2)

    assert len(connect(server).add_examples("paint", [("red", picture())] * 5)) == 5
    assert sorted(server.sizes) == [1, 2, 2]


def test_a_rejected_picture_has_its_error_and_its_neighbours_are_added():
    class Picky(Server):
        def example(self, index, name):
            error = {"title": "No", "code": "image_format", "detail": "why", "status": 415}
            return super().example(index, name) if index != 1 else {"index": 1, "error": error}

    added = connect(Picky()).add_examples("paint", [("red", picture()), ("red", b"?"), ("red", picture())])

    assert [one.status for one in added] == ["added", None, "added"]
    assert isinstance(added[1].error, ImageError)
    assert added[1].error.detail == "why"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"title": "No", "code": "image_format", "detail": "why"}, 415),
        ({"code": "images_rejected", "errors": [{"title": "No", "code": "image_format", "detail": "why"}]}, 422),
    ],
)
def test_a_request_of_rejected_pictures_only_gives_each_its_error(body, status):
    class Picky(Server):
        def add(self, request):
            return httpx.Response(status, json=body)

    (added,) = connect(Picky()).add_examples("paint", [("red", b"?")])

    assert (added.id, added.error.code) == (None, "image_format")


@pytest.mark.parametrize("label", ["unlabelled", " unlabelled", "100%22"])
def test_labels_that_a_form_cannot_carry_are_refused_before_anything_is_sent(label):
    server = Server()

    with pytest.raises(InvalidRequestError, match="cannot be sent as a label"):
        connect(server).add_examples("paint", [("red", picture()), (label, picture())])
    assert server.requests == []


@pytest.mark.parametrize("given", ["photo.jpg", b"bytes", ("cat", picture(), "more")], ids=["path", "bytes", "three"])
def test_anything_but_pairs_is_refused_before_anything_is_sent(given):
    server = Server()
    with connect(server) as client, pytest.raises(TypeError, match="pairs, found"):
        client.add_examples("pets", [given])
    assert server.requests == []


def test_no_pictures_are_no_examples():
    assert connect(Server()).add_examples("paint", []) == []


def test_a_failing_request_ends_the_upload_and_later_ones_are_not_sent():
    class Full(Server):
        def add(self, request):
            return httpx.Response(409, json={"title": "Full", "code": "examples_full", "detail": "remove some"})

    server = Full(max_images=1)
    with pytest.raises(ConflictError, match="Full: remove some"):
        connect(server).add_examples("paint", [("red", picture())] * 40)
    assert len(server.requests) < 20


def test_pages_of_examples_are_joined():
    seen = []

    def handle(request):
        seen.append(request)
        after, limit = int(request.url.params["after"]), int(request.url.params["limit"])
        rows = [
            {"id": number, "label": "red", "predicted": None, "margin": None, "source": "upload"}
            | {"added_by": "local", "added_at": "2026-11-30T12:00:00Z", "thing": "of a later server"}
            for number in range(after + 1, min(after + limit, 1500) + 1)
        ]
        return httpx.Response(200, json={"examples": rows, "next": rows[-1]["id"] if len(rows) == limit else None})

    client = connect(handle)
    found = client.examples("paint", label="red", suspect=True, order="uncertain")

    assert [one.id for one in found] == list(range(1, 1501))
    assert found[0] == Example(1, "red", None, None, "upload", "local", "2026-11-30T12:00:00Z")
    assert str(seen[0].url.copy_with(query=None)) == "http://test/domains/paint/examples"
    expected = {"label": "red", "suspect": "true", "order": "uncertain", "after": "0", "limit": "1000"}
    assert dict(seen[0].url.params) == expected
    assert len(client.examples("paint", is_labelled=False, limit=3)) == 3
    assert dict(seen[-1].url.params) == {"labelled": "false", "after": "0", "limit": "3"}


def test_labels_are_changed_and_examples_removed():
    seen = []
    client = answering(200, {"changed": 1, "removed": 2}, seen)

    assert client.relabel("paint", [3, 4], None) == 1
    assert client.remove_examples("paint", [3, 4]) == 2
    assert client.remove_examples("paint", remove_all=True) == 2
    assert client.remove_examples("paint", range(1, 2502)) == 6

    assert json.loads(seen[0].content) == {"label": None, "ids": [3, 4]}
    client.relabel("paint", [3], "red", is_confirmed=True)
    assert json.loads(seen.pop().content) == {"label": "red", "ids": [3], "confirmed": True}
    assert [request.method for request in seen] == ["PATCH"] + ["DELETE"] * 5
    assert [dict(request.url.params) for request in seen[1:3]] == [{"ids": "3,4"}, {"all": "true"}]
    sent = [number for request in seen[3:] for number in request.url.params["ids"].split(",")]
    assert sent == [str(number) for number in range(1, 2502)]


@pytest.mark.parametrize("arguments", [{}, {"ids": [1], "remove_all": True}])
def test_removing_needs_either_ids_or_all(arguments):
    with pytest.raises(ValueError, match="Pass ids, or remove_all=True"):
        answering(204, {}, []).remove_examples("paint", **arguments)


def test_an_unknown_example_is_an_error():
    problem = {"title": "No such example", "code": "example_not_found", "detail": "9"}

    with pytest.raises(NotFoundError, match="No such example: 9"):
        answering(404, problem, []).relabel("paint", [9], "red")


def test_a_domain_is_created_from_class_names():
    seen = []
    client = answering(201, {"domain": "pets", "version": 1, "digest": "sha256:x"}, seen)

    assert client.create_domain("pets", ["cat", "dog"]) == Version("pets", 1, "sha256:x", is_live=True, is_new=True)
    assert (seen[0].method, seen[0].url.path) == ("PUT", "/domains/pets")
    expected = {"classes": ["cat", "dog"], "templates": [], "boosted_by": None}
    assert json.loads(seen[0].content) == expected


def test_a_fit_gives_the_version_and_its_report():
    seen = []
    body = {
        "domain": "paint",
        "version": 4,
        "digest": "sha256:y",
        "is_live": True,
        "report": REPORT,
        "new_classes": ["pink"],
    }
    made = answering(201, body, seen).fit("paint", based_on=2, classes="examples", method="gda", unlabelled=True)

    assert made == Fit("paint", REPORT, 4, "sha256:y", is_live=True, new_classes=("pink",))
    assert made.accuracy == 0.9
    chosen = {"based_on": 2, "classes": "examples", "method": "gda", "unlabelled": True}
    assert json.loads(seen[0].content) == {"activate": True, **chosen}


def test_a_report_makes_no_version():
    seen = []
    found = answering(200, {"domain": "paint", "report": REPORT, "new_classes": []}, seen).fit_report("paint")

    assert found == Fit("paint", REPORT)
    assert seen[0].method == "GET"
    assert dict(seen[0].url.params) == {"based_on": "live", "classes": "own", "method": "auto", "unlabelled": "false"}


@pytest.mark.parametrize(("status", "kind"), [(409, ConflictError), (422, InvalidRequestError), (500, ServerError)])
def test_a_fit_that_is_refused_is_an_error(status, kind):
    with pytest.raises(kind, match="Too few: add more"):
        answering(status, {"title": "Too few", "code": "x", "detail": "add more"}, []).fit("paint")
