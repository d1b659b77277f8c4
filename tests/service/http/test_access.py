"""Keys, listings, rate limits and the access log of the whole application."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

from service.access import keys as ring_module
from service.access.key_file import add_key, read_keys, revoke_key
from service.access.rules import RULES, SCOPES
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

OPEN_PATHS = ("/", "/livez", "/readyz", "/docs", "/openapi.json", "/assets/app.js")
BODIES = {("POST", "/domains/{domain}/fit"): {"activate": False}}
"""Without this body the request requires a second scope."""
WRONG_KEY = "pk_aaaaaaaa_" + "A" * 43


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def made(tmp_path):
    """Create a key, and return it with all keys created so far."""

    def make(scopes, domains=(), **fields):
        key = add_key(tmp_path / "keys.json", list(scopes), list(domains), **fields)
        return read_keys(tmp_path / "keys.json"), key

    return make


async def test_a_key_is_required_before_a_body_is_read(serve, made):
    keys, key = made(["classify"], ["paint"])
    n_read = 0

    async def body():
        nonlocal n_read
        n_read += 1
        yield picture()

    async with serve(keys) as client:
        refused = await client.post("/classify/paint", content=body())
        denied = await client.post("/classify/ink", content=body(), headers=bearer(key))
        served = await client.post("/classify/paint", content=picture(), headers=bearer(key))
        publish = await client.post("/domains/paint/versions", content=colour_bundle(seed=1), headers=bearer(key))
        opened = [(await client.get(path)).status_code for path in OPEN_PATHS]
        hidden = [(await client.get(path)).status_code for path in ("/metrics", "/info", "/domains", "/nowhere")]
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (denied.status_code, denied.json()["code"]) == (403, "denied")
    assert n_read == 0
    assert served.status_code == 200
    assert publish.status_code == 403
    assert opened == [200] * len(OPEN_PATHS)
    assert hidden == [401] * 4


@pytest.mark.parametrize("held", SCOPES)
async def test_every_route_serves_exactly_the_keys_with_its_scope_and_domain(serve, made, held):
    made([held], ["paint"])
    keys, key = made([held], ["paint"])
    async with serve(keys) as client:
        for template, methods in RULES.items():
            for method, scope in methods.items():
                for domain in ("paint", "ink", "nowhere"):
                    path = template.format(domain=domain, version=9, example=9, name="page.js")
                    body = BODIES.get((method, template))
                    status = (await client.request(method, path, json=body, headers=bearer(key))).status_code
                    is_covered = domain == "paint" or "{domain}" not in template
                    is_allowed = scope == "none" or (scope in {held, "any"} and is_covered)
                    assert (status != 403) is is_allowed, (method, path, status)
                    assert (await client.request(method, path)).status_code != 401 or scope != "none"


async def test_expired_and_revoked_keys_are_rejected_by_a_running_service(serve, made, tmp_path, monkeypatch):
    monkeypatch.setattr(ring_module, "POLL_S", 0)
    made(["classify"])
    _, expired = made(["classify"], expires=datetime.now(UTC) - timedelta(seconds=1))
    keys, key = made(["classify"])
    async with serve(keys, keys_file=tmp_path / "keys.json") as client:
        late = await client.get("/domains", headers=bearer(expired))
        before = await client.get("/domains", headers=bearer(key))
        revoke_key(tmp_path / "keys.json", key.split("_")[1])
        after = await client.get("/domains", headers=bearer(key))
        _, new = made(["classify"])
        added = await client.get("/domains", headers=bearer(new))
    assert (late.status_code, late.json()["code"], late.json()["title"]) == (401, "key_expired", "API key expired")
    assert [answer.status_code for answer in (before, after, added)] == [200, 401, 200]
    assert added.json()["domains"] == before.json()["domains"] != []


async def test_activating_with_an_upload_needs_both_scopes_and_history_names_the_key(serve, made):
    keys, key = made(["publish"])
    async with serve(keys) as client:
        both = await client.post(
            "/domains/paint/versions?activate=true", content=colour_bundle(seed=1), headers=bearer(key)
        )
        upload = await client.post("/domains/paint/versions", content=colour_bundle(seed=1), headers=bearer(key))
        history = (await client.get("/domains/paint/history", headers=bearer(key))).json()["history"]
    assert both.status_code == 403
    assert upload.status_code == 201
    assert history[-1]["actor"] == keys[0].id


async def test_listings_contain_only_the_domains_of_the_key(serve, made):
    _, everything = made(["metrics"])
    keys, limited = made(["metrics"], ["paint"])
    async with serve(keys) as client:
        for key, shown in ((everything, ["ink", "paint"]), (limited, ["paint"])):
            domains = (await client.get("/domains", headers=bearer(key))).json()["domains"]
            ready = (await client.get("/readyz", headers=bearer(key))).json()
            metrics = (await client.get("/metrics", headers=bearer(key))).text
            assert [one["domain"] for one in domains] == shown
            assert ready == {"is_ready": True, "reason": None, "domains": dict.fromkeys(shown, "live")}
            assert [name for name in ("ink", "paint") if f'domain="{name}"' in metrics] == shown
            assert "caspl_queue_rows" in metrics
        for headers in ({}, bearer(WRONG_KEY), bearer("x")):
            assert (await client.get("/readyz", headers=headers)).json() == {"is_ready": True, "reason": None}


async def test_a_domain_outside_the_key_looks_the_same_whether_it_exists_or_not(serve, made):
    keys, key = made(["classify", "publish", "activate", "rollback"], ["paint"])
    async with serve(keys) as client:
        for method, path in (("GET", ""), ("GET", "/versions"), ("GET", "/history"), ("POST", "/rollback")):
            answers = [
                await client.request(method, f"/domains/{name}{path}", headers=bearer(key))
                for name in ("ink", "nowhere")
            ]
            bodies = [{**answer.json(), "request_id": None} for answer in answers]
            assert bodies[0] == bodies[1]
            assert bodies[0]["code"] == "denied"


async def test_a_key_over_its_rate_gets_429_with_retry_after_and_others_are_served(serve, made):
    _, slow = made(["classify"], requests_per_s=0.01)
    keys, other = made(["classify"])
    async with serve(keys) as client:
        answers = [await client.get("/domains", headers=bearer(slow)) for _ in range(3)]
        assert (await client.get("/domains", headers=bearer(other))).status_code == 200
    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[1].json()["code"] == "rate_limited"
    assert 1 < int(answers[1].headers["retry-after"]) <= 100


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_key_over_its_bytes_per_second_gets_429(serve, made, is_chunked):
    keys, key = made(["classify"])

    async def chunks():
        yield picture()

    async with serve(keys, key_bytes_per_s=len(picture()) / 1000) as client:
        answers = [
            await client.post("/classify/paint", content=chunks() if is_chunked else picture(), headers=bearer(key))
            for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert int(answers[1].headers["retry-after"]) > 500


async def test_wrong_keys_of_one_address_get_429_and_valid_ones_are_still_served(serve, made):
    keys, key = made(["classify"])
    async with serve(keys, forwarded_allow_ips="127.0.0.1", max_failed_keys_per_minute=1) as client:

        async def status(key, address):
            return (await client.get("/domains", headers=bearer(key) | {"x-forwarded-for": address})).status_code

        assert [await status(WRONG_KEY, "10.0.0.1") for _ in range(3)] == [401, 429, 429]
        assert await status(WRONG_KEY, "10.0.0.2") == 401
        assert await status(key, "10.0.0.1") == 200


async def test_requests_without_a_key_are_not_counted_as_wrong_keys(serve, made):
    keys, _ = made(["classify"])
    async with serve(keys) as client:
        assert {(await client.get("/domains")).status_code for _ in range(15)} == {401}


def answered(caplog):
    return [record for record in caplog.records if record.message == "request.answered"]


async def test_the_access_log_has_client_key_and_route_template_whatever_the_outcome(serve, made, caplog):
    caplog.set_level(logging.INFO)
    _, limited = made(["classify"], requests_per_s=0.01)
    keys, key = made(["classify"], ["paint"])
    expected = {
        ("POST", "/classify/paint", key): (200, "/classify/{domain}"),
        ("POST", "/classify/secret-name", key): (403, "/classify/{domain}"),
        ("POST", "/classify/secret-name", WRONG_KEY): (401, "/classify/{domain}"),
        ("POST", "/classify/secret-name", limited): (404, "/classify/{domain}"),
        ("GET", "/domains/secret-name", limited): (429, "/domains/{domain}"),
        ("DELETE", "/domains/secret-name", key): (405, "/domains/{domain}"),
        ("GET", "/secret-name", key): (404, "unmatched"),
    }
    async with serve(keys) as client:
        for method, path, sent in expected:
            await client.request(method, path, content=picture(), headers=bearer(sent))
    records = answered(caplog)
    assert [(repr(record.status), record.route) for record in records] == [
        (str(status), route) for status, route in expected.values()
    ]  # numbers, not members of an enumeration
    for (_, _, sent), record in zip(expected, records, strict=True):
        assert record.client == "127.0.0.1"
        assert getattr(record, "key", None) == (None if sent == WRONG_KEY else sent.split("_")[1])
        assert "secret-name" not in str(vars(record))


async def test_refused_requests_count_under_their_route(serve, made):
    keys, key = made(["metrics"])
    async with serve(keys) as client:
        await client.post("/classify/paint")
        text = (await client.get("/metrics", headers=bearer(key))).text
    assert 'caspl_http_requests_total{code="401",method="POST",route="/classify/{domain}"} 1.0' in text
