"""Requests that are refused before they are parsed get the response that the application would send."""

import http.client
import json
import logging
import socket
import threading
import time

import pytest
import uvicorn

from service.app import create_app
from service.http.middleware.early_refusal import LOG_EVERY_S
from service.http.server import http_config, listen
from service.settings import Settings
from tests.service.fakes import picture
from tests.service.processes import eventually

BODY = picture()


class Served:
    """A running service and its context; `fill` opens as many requests of `paint` as fit."""

    def __init__(self, app, address, thread):
        self.context, self.address, self._thread = app.state.context, address, thread
        self._n_open = 0

    def fill(self, domain="paint"):
        requests = self.context.open_requests
        eventually(lambda: requests._budget.n_held == self._n_open)  # a request is closed after its response
        while self.context.open_requests.has_room(domain, 5.0):
            self.context.open_requests.open(domain, 5.0)
        self._n_open = requests._budget.n_held

    def free(self):
        self._n_open -= 1
        self.context.open_requests.close("paint", is_answered=True)

    def cpu_s(self):
        """CPU time of the event loop's thread."""
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def exchange(self, *pieces):
        """All bytes that come back until the connection is closed."""
        with socket.create_connection(self.address, timeout=20) as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.05)
            return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.fixture
def served(model, store):
    settings = Settings(store_poll_s=0, max_open_requests=3)
    app = create_app(settings, model, store)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(http_config(app, settings, context=app.state.context))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Served(app, listener.getsockname(), thread)
        server.should_exit = True
        thread.join(30)


CLOSE = "Connection: close\r\n"


def request(path="/classify/paint", lines=CLOSE, body=BODY, method="POST"):
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return head.encode() + body


def head_and_problem(response):
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    problem = json.loads(body)
    assert int(headers["content-length"]) == len(body)
    assert headers.pop("x-request-id") == problem.pop("request_id")
    headers.pop("date")
    headers.pop("content-length")
    return status, headers, problem


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/classify/paint", "detail"),
        ("/v2/models/paint/infer", "error"),
        ("/v2/models/paint/versions/1/infer", "error"),
        ("/v1/embeddings", "error"),
    ],
)
def test_the_response_is_that_of_the_application_and_the_request_is_not_parsed(served, monkeypatch, path, text):
    served.fill("paint" if "paint" in path else "")
    normal = head_and_problem(served.exchange(request(path, lines="X-Request-Id: a\r\n" + CLOSE)))
    monkeypatch.setattr("service.http.connections.strict.StrictHttpProtocol.data_received", None)
    early = head_and_problem(served.exchange(request(path)))
    normal[2][text] = early[2][text]
    assert early == normal
    assert early[0].startswith("HTTP/1.1 429")


def test_a_refusal_takes_less_than_half_of_the_cpu_time(served):
    served.fill()

    def cpu_s(sent):
        began_s = served.cpu_s()
        for _ in range(200):
            connection.sendall(sent)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, json.loads(response.read())["code"]) == (429, "overloaded")
        return served.cpu_s() - began_s

    with socket.create_connection(served.address, timeout=20) as connection:
        early, parsed = request(lines=""), request(lines="X-Request-Id: a\r\n")
        cpu_s(parsed)
        assert cpu_s(early) < cpu_s(parsed) / 2


def test_a_connection_stays_open_and_is_served_once_there_is_room(served):
    served.fill()
    connection = http.client.HTTPConnection(*served.address, timeout=10)
    statuses = []
    for _ in range(3):
        for _ in range(2):
            connection.request("POST", "/classify/paint?timeout_ms=5000", BODY, {"Host": "localhost"})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        served.free() if statuses[-1] == 429 else served.fill()
    connection.close()
    assert statuses == [429, 429, 200, 200, 429, 429]


def test_other_requests_are_served_meanwhile(served):
    served.fill()
    for path, method in (("/livez", "GET"), ("/domains", "GET"), ("/classify/ink", "POST")):
        answer = served.exchange(request(path, CLOSE, BODY if method == "POST" else b"", method))
        assert answer.startswith(b"HTTP/1.1 200"), path


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ([request()[:40], request()[40:]], [429]),
        ([request()[:-5], request()[-5:]], [429]),
        ([request(lines="") + request()], [429, 429]),
        ([request(lines="Content-Length: 3\r\n")], [400]),
        ([request(lines="Expect: 100-continue\r\n" + CLOSE)], [429]),
        ([request(lines="X-Request-Id: a\r\n" + CLOSE)], [429]),
        ([request("/classify/../domains")], [404]),
        ([request("/classify/paint/x")], [404]),
    ],
    ids=["cut head", "cut body", "two", "two lengths", "expect", "request id", "dots", "longer path"],
)
def test_what_is_not_exactly_one_plain_request_is_parsed(served, pieces, statuses):
    served.fill()
    response = served.exchange(*pieces)
    assert [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]] == statuses


def test_refusals_are_counted_and_logged_together(served, caplog):
    caplog.set_level(logging.INFO)
    served.fill()
    for path in ("/classify/paint", "/classify/paint?top_k=1", "/v2/models/paint/infer"):
        served.exchange(request(path))
    deadline_s = time.monotonic() + 20 * LOG_EVERY_S
    while "requests.rejected" not in caplog.text:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    metrics = served.context.metrics.text().decode()
    assert 'caspl_http_requests_total{code="429",method="POST",route="/classify/{domain}"} 2.0' in metrics
    assert 'caspl_http_requests_total{code="429",method="POST",route="/v2/models/{domain}/infer"} 1.0' in metrics
    assert 'caspl_errors_total{code="overloaded"} 3.0' in metrics
