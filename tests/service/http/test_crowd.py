"""Refusing by the first line alone: whom, and whom not."""

import time

import pytest
from starlette.datastructures import QueryParams

from service.http.crowd import wanted_of
from service.settings import Settings
from tests.service.fakes import colour_bundle, picture
from tests.service.http.crowd import crowd

pytestmark = pytest.mark.anyio
FULL = {"max_waiting_rows": 2, "max_batch_rows": 1, "max_images": 2}


async def ask_in_a_crowd(serve, model, path):
    async with serve(**FULL) as client:
        model.gate.clear()
        kept = await crowd(client)
        answer = await client.post(path, content=picture())
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 4
    return answer.status_code, answer.json()["code"]


async def test_what_would_be_refused_is_not_looked_at_closely(serve, model):
    assert await ask_in_a_crowd(serve, model, "/classify/paint?top_k=0") == (429, "overloaded")


@pytest.mark.parametrize("query", ["timeout_ms=soon", "timeout_ms=0", "timeout_ms=99999999", "priority=urgent"])
async def test_who_does_not_say_how_soon_is_told_what_is_wrong(serve, model, query):
    assert await ask_in_a_crowd(serve, model, f"/classify/paint?{query}") == (422, "request_invalid")


@pytest.mark.parametrize(("domain", "code"), [("nosuch", "domain_not_found"), ("idle", "domain_not_live")])
async def test_a_domain_without_anything_live_is_404_however_many_wait(serve, model, store, domain, code):
    store.add("idle", colour_bundle("idle"))
    assert await ask_in_a_crowd(serve, model, f"/classify/{domain}") == (404, code)


@pytest.mark.parametrize(("limits", "path", "route"), [
    (FULL, "/classify/paint", "/classify/{domain}"),
    ({"max_open_requests": 4, "max_batch_rows": 1}, "/classify/paint", "/classify/{domain}"),
    ({"max_open_requests": 4, "max_batch_rows": 1}, "/classify", "/classify"),
])  # fmt: skip
async def test_a_refusal_counts_with_its_route(serve, model, limits, path, route):
    async with serve(**limits) as client:
        model.gate.clear()
        kept = await crowd(client)
        refused = await client.post(path, content=picture())
        metrics = (await client.get("/metrics")).text
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 4
    assert refused.status_code == 429
    assert f'caspl_http_requests_total{{code="429",method="POST",route="{route}"}} 1.0' in metrics


async def test_a_request_that_asks_for_no_image_to_be_scored_is_told_so_in_a_crowd(serve, model):
    async with serve(**FULL) as client:
        model.gate.clear()
        kept = await crowd(client)
        answer = await client.get("/classify/paint")
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 4
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


async def test_images_of_several_domains_are_let_in_or_refused_one_by_one(serve, model):
    status, code = await ask_in_a_crowd(serve, model, "/classify")
    assert (status, code) == (415, "unsupported_media"), "it was looked at closely"


@pytest.mark.parametrize(
    ("query", "within_s", "priority"),
    [
        ("", 7.0, 0),
        ("timeout_ms=250&top_k=x", 0.25, 0),
        ("priority=high", 7.0, 1),
        ("timeout_ms=1&priority=low", 0.001, -1),
    ],
)
def test_the_query_says_how_soon_and_how_urgently(query, within_s, priority):
    before_s = time.monotonic()
    wanted = wanted_of(QueryParams(query), Settings(default_timeout_s=7.0))
    assert before_s + within_s <= wanted.deadline_s <= time.monotonic() + within_s
    assert wanted.priority == priority


@pytest.mark.parametrize(
    "query",
    [
        "timeout_ms=",
        "timeout_ms=0",
        "timeout_ms=1.5",
        "timeout_ms=-3",
        "timeout_ms=" + 5000 * "9",
        "priority=",
        "priority=HIGH",
    ],
)
def test_a_query_that_is_wrong_about_it_says_nothing(query):
    assert wanted_of(QueryParams(query), Settings()) is None
