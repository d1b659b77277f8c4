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


def test_large_files_are_spread_over_requests_that_a_service_takes(tmp_path, answering):
    seen = answering(reply)
    asked = question(tmp_path, 7)
    for path in asked.files[:6]:
        path.write_bytes(bytes(9 * 1024 * 1024))
    assert len(ask(asked)) == 7
    assert [request.content.count(b'name="images"') for request in seen] == [3, 4]
    assert all(len(request.content) < 32 * 1024 * 1024 for request in seen)


def test_what_a_stricter_service_calls_too_large_is_halved(tmp_path, answering):
    def at_most_two(number, request):
        if request.content.count(b'name="images"') > 2:
            return httpx.Response(413, json={"title": "The request is too large", "code": "too_many_images"})
        return reply(number, request)

    seen = answering(at_most_two)
    answers = ask(question(tmp_path, 5))
    assert [request.content.count(b'name="images"') for request in seen] == [5, 2, 3, 1, 2]
    assert [answer["file"] for answer in answers] == [str(tmp_path / f"{n}.png") for n in range(5)]


def test_a_single_file_that_is_too_large_fails_alone(tmp_path, answering):
    def refuse_large(number, request):
        if len(request.content) > 32 * 1024 * 1024:
            return httpx.Response(413, json={"title": "The request is too large", "code": "too_large"})
        return reply(number, request)

    answering(refuse_large)
    asked = question(tmp_path, 3)
    asked.files[1].write_bytes(bytes(33 * 1024 * 1024))
    answers = ask(asked)
    assert [answer["error"] and answer["error"]["code"] for answer in answers] == [None, "too_large", None]


def test_a_late_failure_keeps_the_answers_before_it_and_stops(tmp_path, answering):
    busy = httpx.Response(500, json={"title": "The model failed", "detail": "try again"})
    seen = answering(lambda n, request: reply(n, request) if n == 1 else busy)
    answers = ask(question(tmp_path, 40))
    assert [bool(answer["error"]) for answer in answers] == [False] * 16 + [True] * 24
    assert answers[16]["error"]["detail"] == "The model failed: try again"
    assert answers[39]["file"] == str(tmp_path / "39.png")
    assert len(seen) == 2


def test_text_from_outside_is_shown_as_it_is(tmp_path):
    found = [{"label": label, "probability": 0.5} for label in ("[/x]", ":dog:", "a\x1b[2Jb")]
    answer = {"file": "/in/[bold]nope.png", "domain": "paint", "version": 1, "predictions": found, "error": None}
    refused = {
        "file": "b.png",
        "domain": "paint",
        "predictions": [],
        "error": {"title": "[/y]", "detail": "[bold] :cat:"},
    }
    console = Console(record=True, width=160)
    show([answer, refused], console)
    text = console.export_text()
    for shown in ("[bold]nope.png", "[/x] 50.0%", ":dog: 50.0%", "a?[2Jb", "[/y]", "[bold] :cat:"):
        assert shown in text


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


@pytest.mark.parametrize("text", ["<html>", "[]", '{"hello": 1}'])
def test_something_else_than_the_service_is_told_as_such(tmp_path, answering, text):
    answering(lambda *_: httpx.Response(200, text=text))
    with pytest.raises(AskError, match="does not answer like"):
        ask(question(tmp_path))


def test_a_file_that_cannot_be_read_is_told_before_any_is_sent(tmp_path, answering):
    seen = answering(reply)
    with pytest.raises(AskError, match="Cannot read"):
        ask(question(tmp_path, files=(*question(tmp_path, 16).files, tmp_path / "missing.png")))
    assert not seen
