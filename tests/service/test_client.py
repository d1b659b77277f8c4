import httpx
import pytest
from rich.console import Console

from service import client
from service.client import AskError, Question, ask, show
from tests.service.fakes import picture


@pytest.fixture
def answering(monkeypatch):
    """Let a function stand for the service; returns the requests it got."""
    seen = []

    def install(handler):
        def record(request):
            seen.append(request)
            return handler(len(seen), request)

        real = httpx.Client
        monkeypatch.setattr(
            client.httpx, "Client", lambda **options: real(transport=httpx.MockTransport(record), **options)
        )
        monkeypatch.setattr(client.time, "sleep", lambda _: None)
        return seen

    return install


def question(tmp_path, n=1, **changes):
    files = []
    for number in range(n):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture())
        files.append(path)
    values = {"url": "http://test", "domain": "paint", "files": tuple(files), "query": {"top_k": 3}, "key": None}
    return Question(**(values | changes))


def reply(_, request):
    n = request.content.count(b'name="images"')
    one = {"predictions": [{"label": "red", "class_id": 0, "probability": 0.9}], "error": None}
    return httpx.Response(200, json={"domain": "paint", "version": 3, "digest": "sha256:x", "results": [one] * n})


def test_files_are_sent_sixteen_at_a_time_and_answers_keep_their_order(tmp_path, answering):
    seen = answering(reply)
    answers = ask(question(tmp_path, 20, key="pk_x"))
    assert [request.content.count(b'name="images"') for request in seen] == [16, 4]
    assert seen[0].headers["authorization"] == "Bearer pk_x"
    assert seen[0].url.params["top_k"] == "3"
    assert [answer["file"] for answer in answers] == [str(tmp_path / f"{n}.png") for n in range(20)]
    assert {answer["version"] for answer in answers} == {3}


def test_a_busy_service_is_asked_again(tmp_path, answering):
    seen = answering(
        lambda n, request: reply(n, request) if n == 3 else httpx.Response(429, json={}, headers={"retry-after": "1"})
    )
    assert len(ask(question(tmp_path))) == 1
    assert len(seen) == 3


def test_a_refused_image_is_told_beside_its_file(tmp_path, answering):
    answering(lambda *_: httpx.Response(415, json={"title": "Not a supported image format", "code": "image_format"}))
    (answer,) = ask(question(tmp_path))
    assert answer["error"]["code"] == "image_format"
    console = Console(record=True, width=120)
    show([answer, answer | {"error": None, "predictions": [{"label": "red", "probability": 0.5}]}], console)
    text = console.export_text()
    assert "Not a supported image format" in text
    assert "red 50.0%" in text


def test_a_refused_request_is_told_in_words(tmp_path, answering):
    answering(lambda *_: httpx.Response(404, json={"title": "No such domain", "detail": "look at /domains"}))
    with pytest.raises(AskError, match="No such domain: look at"):
        ask(question(tmp_path))


def test_something_else_than_the_service_is_told_as_such(tmp_path, answering):
    answering(lambda *_: httpx.Response(200, text="<html>"))
    with pytest.raises(AskError, match="does not answer like"):
        ask(question(tmp_path))
    with pytest.raises(AskError, match="Cannot read"):
        ask(question(tmp_path, files=(tmp_path / "missing.png",)))
