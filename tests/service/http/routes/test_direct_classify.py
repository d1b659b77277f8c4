"""The classify route without FastAPI's router: the same queries, and FastAPI for everything else."""

from typing import Annotated
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI, Query
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from service.http.routes import classify as module
from service.http.routes.classify import DirectClassify, plain_query
from service.http.routes.requests import ClassifyQuery

NAMES = ("top_k", "threshold", "labels", "stack", "timeout_ms", "priority", "abstain", "return", "version", "other")
VALUES = ("", "0", "1", "5", "0.5", "1e3", " 7", "boost", "cascade", "low", "embedding", "cat,dog", "null", "\u00e9")

fastapi = FastAPI()


@fastapi.get("/")
def parsed(query: Annotated[ClassifyQuery, Query()]) -> dict[str, object]:
    """What FastAPI makes of a query."""
    return query.model_dump(mode="json")


def request(query_string, path="/classify/paint", method="POST"):
    scope = {"type": "http", "method": method, "path": path, "query_string": query_string.encode(), "headers": []}
    return Request(scope)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=4))
def test_a_plain_query_is_what_fastapi_makes_of_it_and_an_invalid_one_is_left_to_it(items):
    query_string = urlencode(items)
    theirs = TestClient(fastapi).get(f"/?{query_string}")

    ours = plain_query(request(query_string))

    names = [name for name, _ in items]
    is_plain = len(set(names)) == len(names) and "labels" not in names
    if is_plain and theirs.status_code == 200:
        assert ours.model_dump(mode="json") == theirs.json()
    else:
        assert ours is None


@pytest.fixture
def direct(monkeypatch):
    """`DirectClassify` in front of an application; both answer with their name."""

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
def test_any_other_request_does(direct, method, path):
    assert direct.request(method, path).text == "FastAPI"
