"""The classify route without FastAPI's router: the same answers, and FastAPI for everything else."""

import logging
import re
from typing import Annotated
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI, Query
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.testclient import TestClient

from service.http.routes import classify as module
from service.http.routes.classify import DirectClassify, plain_query
from service.http.routes.requests import ClassifyQuery
from tests.service.fakes import picture

NAMES = ("top_k", "threshold", "labels", "stack", "timeout_ms", "priority", "abstain", "return", "returns", "version")
VALUES = ("", "0", "1", "5", "0.5", "1e3", " 7", "boost", "cascade", "low", "embedding", "cat,dog", "null", "\u00e9")

fastapi = FastAPI()


@fastapi.get("/")
def parsed(query: Annotated[ClassifyQuery, Query()]) -> dict[str, object]:
    """The query as FastAPI parses it."""
    return query.model_dump(mode="json")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4))
def test_a_plain_query_is_parsed_as_by_fastapi_and_any_other_is_left_to_it(items):
    query_string = urlencode(items)
    theirs = TestClient(fastapi).get(f"/?{query_string}")

    ours = plain_query(QueryParams(query_string))

    names = [name for name, _ in items]
    is_plain = len(set(names)) == len(names) and "labels" not in names
    if is_plain and theirs.status_code == 200:
        assert ours.model_dump(mode="json") == theirs.json()
    else:
        assert ours is None


@pytest.fixture
def direct(monkeypatch):
    """`DirectClassify` in front of an application; each responds with its name."""

    async def classify(request, domain, query):
        assert request.path_params == {"domain": domain}
        return Response(f"direct {domain} {query.top_k}")

    monkeypatch.setattr(module, "classify", classify)
    return TestClient(DirectClassify(Response("FastAPI")))


def test_a_plain_request_does_not_reach_fastapi(direct):
    assert direct.post("/classify/paint").text == "direct paint 5"
    assert direct.post("/classify/paint?top_k=2&stack=boost").text == "direct paint 2"
    assert direct.post("/classify/caf%C3%A9").text == "direct caf\u00e9 5"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/classify"),
        ("POST", "/classify/"),
        ("POST", "/classify/a/b"),
        ("POST", "/domains/paint/fit"),
        ("GET", "/classify/paint"),
        ("POST", "/classify/paint?labels=cat,dog"),
        ("POST", "/classify/paint?top_k=1&top_k=2"),
        ("POST", "/classify/paint?top_k=0"),
        ("POST", "/classify/paint?unknown=1"),
    ],
)
def test_any_other_request_reaches_fastapi(direct, method, path):
    assert direct.request(method, path).text == "FastAPI"


RAW = {"content": picture("red"), "headers": {"Content-Type": "image/png"}}
FILES = {"files": [("images", ("a.png", picture("red"))), ("images", ("b.png", b"no image"))]}
VARYING = {"server-timing", "content-length"}
"""Headers that depend on how long the request took."""
REQUESTS = [
    ("POST", "/classify/paint", RAW),
    ("POST", "/classify/paint", FILES),
    ("POST", "/classify/p%61int", RAW),
    ("POST", "/api/classify/paint", RAW),
    ("POST", "/api/api/classify/paint", RAW),
    ("POST", "/classify/caf%C3%A9", RAW),
    ("POST", "/classify/paint%2Fx", RAW),
    ("POST", "/classify/paint%0A", RAW),
    ("POST", "/classify/%FF", RAW),
    ("POST", "/classify/unknown", RAW),
    ("HEAD", "/classify/paint", {}),
    ("OPTIONS", "/classify/paint", {}),
    ("GET", "/classify/paint", {}),
    ("POST", "/classify/paint", {}),
    ("POST", "/classify/paint", {**RAW, "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/classify/paint", {**RAW, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
    ("POST", "/classify/paint", {"json": {"images": "none"}}),
    ("POST", "/classify/paint?version=2", RAW),
    ("POST", f"/classify/paint?top_k={'9' * 5000}", RAW),
    ("POST", "/classify/paint?top_k=1000", RAW),
    ("POST", "/classify/paint?priority=%FF", RAW),
    ("POST", f"/classify/paint?{'&'.join(f'x{n}=' for n in range(3000))}", RAW),
    ("POST", "/classify/paint?abstain=0.5", RAW),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path", "content"), REQUESTS)
async def test_responses_and_access_log_are_those_of_the_router(serve, caplog, monkeypatch, method, path, content):
    caplog.set_level(logging.INFO)
    found = []
    async with serve(root_path="/api") as client:
        for pattern in (module.PATH, re.compile("(?!)")):  # the second one matches no path
            monkeypatch.setattr(module, "PATH", pattern)
            caplog.clear()
            head = {**content.get("headers", {}), "X-Request-Id": "one"}
            response = await client.request(method, path, **{**content, "headers": head})
            headers = {name: value for name, value in response.headers.items() if name not in VARYING}
            text = re.sub(r'"timing_ms":{[^}]*}', "", response.text)
            answered = [record for record in caplog.records if record.getMessage() == "request.answered"]
            fields = [(one.method, one.route, one.status, getattr(one, "code", None)) for one in answered]
            found.append((response.status_code, headers, text, fields))
    assert found[0] == found[1]
    assert len(found[0][3]) == 1
