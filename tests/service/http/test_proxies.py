"""Behaviour that clients expect behind a reverse proxy: HEAD, OPTIONS, prefixes, forwarded headers, CORS."""

import logging

import pytest

from service.access.key_file import add_key, read_keys
from service.access.rules import RULES
from service.configuration.environment import load_settings
from service.errors import SettingsError
from tests.service.examples.colours import add_colours
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

PAGE = "https://app.example"


@pytest.fixture
def key(tmp_path):
    return add_key(tmp_path / "keys.json", ["classify", "publish", "teach", "metrics"], [])


@pytest.fixture
def keys(key, tmp_path):
    return read_keys(tmp_path / "keys.json")


def path_of(template):
    return template.format(domain="paint", version=1, example=1, name="page.css")


@pytest.mark.parametrize("template", [template for template, methods in RULES.items() if "GET" in methods])
async def test_head_is_get_without_a_body(serve, template):
    async with serve() as client:
        add_colours(client.context.examples)
        get, head = await client.get(path_of(template)), await client.head(path_of(template))
    # A domain without a rollout has none to show.
    assert (head.status_code, head.content) == (404 if template.endswith("/rollout") else 200, b"")
    for name in ("content-type", "etag", "cache-control"):
        assert head.headers.get(name) == get.headers.get(name)
    if template != "/metrics":
        assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize("template", RULES)
async def test_options_and_405_name_every_method_of_a_path(serve, keys, key, template):
    expected = {*RULES[template], "OPTIONS"} | ({"HEAD"} if "GET" in RULES[template] else set())
    async with serve(keys) as client:
        options = await client.options(path_of(template))
        other = min({"PUT", "PATCH"} - RULES[template].keys())
        refused = await client.request(other, path_of(template), headers={"authorization": f"Bearer {key}"})
    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["allow"].split(", ")) == expected
    assert (refused.status_code, refused.json()["code"]) == (405, "method_not_allowed")
    assert refused.headers["allow"] == options.headers["allow"]


@pytest.mark.parametrize("path", ["/domains/", "/domains/paint/", "/docs/", "/classify/", "/nowhere"])
async def test_a_path_with_another_slash_is_404_and_never_a_redirect(serve, keys, key, path):
    async with serve(keys) as client:
        answer = await client.get(path, headers={"authorization": f"Bearer {key}", "x-forwarded-proto": "https"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("prefix", ["", "/caspl"])
async def test_a_prefix_works_whether_the_proxy_removes_it_or_not(serve, prefix):
    async with serve(root_path="/caspl/") as client:
        domains = await client.get(f"{prefix}/domains")
        served = await client.post(f"{prefix}/classify/paint", content=picture())
        upload = await client.post(f"{prefix}/domains/paint/versions", content=colour_bundle(seed=1))
        document = (await client.get(f"{prefix}/openapi.json")).json()
        page = await client.get("/caspl")
    assert (domains.status_code, served.status_code) == (200, 200)
    assert upload.headers["location"] == "/caspl/domains/paint/versions/2"
    assert document["servers"] == [{"url": "/caspl"}]
    assert (page.status_code, page.headers["location"]) == (307, "/caspl/")


async def test_only_the_whole_prefix_is_removed(serve):
    async with serve(root_path="/caspl") as client:
        answers = [await client.get(path) for path in ("/casplx/domains", "/caspl/caspl/domains")]
    assert [answer.status_code for answer in answers] == [404, 404]


async def test_forwarded_headers_count_only_from_the_configured_proxies(serve, caplog):
    caplog.set_level(logging.INFO)
    headers = {"x-forwarded-for": "203.0.113.9, 10.1.2.3"}
    for proxies in ({}, {"forwarded_allow_ips": "192.0.2.1"}, {"forwarded_allow_ips": "127.0.0.1, 10.0.0.0/8"}):
        async with serve(**proxies) as client:
            await client.get("/domains", headers=headers)
    clients = [record.client for record in caplog.records if record.message == "request.answered"]
    assert clients == ["127.0.0.1", "127.0.0.1", "203.0.113.9"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"forwarded_allow_ips": "*"},
        {"forwarded_allow_ips": "proxy.internal"},
        {"cors_origins": "app.example"},
        {"cors_origins": "https://app.example/"},
        {"root_path": "/a b"},
        {"root_path": "//host/x"},
    ],
)
def test_settings_for_proxies_are_checked(wrong):
    with pytest.raises(SettingsError, match="Invalid settings"):
        load_settings(**wrong)


def preflight(method="POST", origin=PAGE):
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type",
    }


@pytest.mark.parametrize("method", sorted({method for methods in RULES.values() for method in methods}))
async def test_a_preflight_allows_every_method_of_a_route(serve, method):
    async with serve(cors_origins=PAGE) as client:
        asked = await client.options("/domains/paint/examples", headers=preflight(method))
    assert asked.status_code == 200


async def test_a_preflight_needs_no_key_and_its_page_can_read_answers_and_errors(serve, keys, key):
    async with serve(keys, cors_origins=PAGE) as client:
        asked = await client.options("/classify/paint", headers=preflight())
        headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
        served = await client.post("/classify/paint", content=picture(), headers=headers)
        refused = await client.get("/domains", headers={"origin": PAGE})
        foreign = await client.options("/classify/paint", headers=preflight(origin="https://evil.example"))
    assert asked.status_code == 200
    assert "Authorization" in asked.headers["access-control-allow-headers"]
    assert (served.status_code, refused.status_code) == (200, 401)
    for answer in (asked, served, refused):
        assert answer.headers["access-control-allow-origin"] == PAGE
    assert "X-Bundle-Digest" in served.headers["access-control-expose-headers"]
    assert foreign.status_code == 400
    assert "access-control-allow-origin" not in foreign.headers


async def test_without_the_setting_no_page_of_another_origin_is_allowed(serve, keys, key):
    async with serve(keys) as client:
        asked = await client.options("/classify/paint", headers=preflight())
        served = await client.get("/domains", headers={"origin": PAGE, "authorization": f"Bearer {key}"})
    assert (asked.status_code, served.status_code) == (204, 200)
    for answer in (asked, served):
        assert "access-control-allow-origin" not in answer.headers


async def test_without_keys_pages_of_listed_origins_only_are_served(serve):
    async with serve(cors_origins=f"{PAGE}, http://localhost:3000") as client:
        answers = [
            await client.post(
                "/classify/paint", content=picture(), headers={"origin": origin, "sec-fetch-site": "cross-site"}
            )
            for origin in (PAGE, "http://localhost:3000", "https://evil.example")
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    async with serve(cors_origins="*") as client:
        answer = await client.get("/domains", headers={"origin": PAGE})
    assert answer.status_code == 403, "a star does not open a service without keys"
