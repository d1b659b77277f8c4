import asyncio
import inspect

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from service.access.key_file import add_key, read_keys
from service.http.body import MAX_JSON_BYTES, body_limit
from service.settings import Settings
from tests.service.fakes import colour_bundle, picture

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True


async def chunks(n, size):
    for _ in range(n):
        yield bytes(size)


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_413_announced_or_counted(serve, is_chunked):
    async with serve(max_request_bytes=10_000) as client:
        content = chunks(20, 1_000) if is_chunked else bytes(20_000)
        answer = await client.post("/classify/paint", content=content)
    assert (answer.status_code, answer.json()["code"], answer.json()["limit"]) == (413, "too_large", 10_000)


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_the_limit_holds_for_every_form(serve, form):
    async with serve(max_request_bytes=10_000) as client:
        options = (
            {"files": [("images", bytes(20_000))]}
            if form == "multipart"
            else {"json": {"images": [{"b64": "A" * 20_000}]}}
        )
        answer = await client.post("/classify/paint", **options)
    assert answer.status_code == 413


async def test_a_counted_multipart_body_over_the_limit_is_413_too(serve):
    async def body():
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        async for piece in chunks(30, 1_000):
            yield piece

    async with serve(max_request_bytes=10_000) as client:
        answer = await client.post(
            "/classify/paint", content=body(), headers={"content-type": "multipart/form-data; boundary=x"}
        )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_an_upload_over_its_limit_is_413_and_stores_nothing(serve, store):
    async with serve(max_bundle_bytes=100) as client:
        answer = await client.post("/domains/paint/versions", content=colour_bundle(seed=1))
    assert answer.status_code == 413
    assert len(store.versions("paint")) == 1


async def test_a_body_that_a_route_does_not_read_itself_is_413_and_408_too(serve):
    async with serve(max_body_s=0.3) as client:
        headers = {"content-type": "application/json"}
        large = await client.put("/domains/paint/live", content=chunks(30, 10_000), headers=headers)

        async def slowly():
            while True:
                yield b" "
                await asyncio.sleep(0.05)

        slow = await asyncio.wait_for(client.put("/domains/paint/live", content=slowly(), headers=headers), 5)
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    assert (slow.status_code, slow.json()["code"]) == (408, "slow_body")


async def test_a_body_that_dribbles_in_is_408(serve):
    async def slowly():
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    async with serve(max_body_s=0.2) as client:
        sending = client.post("/classify/paint", content=slowly())
        answer = await asyncio.wait_for(sending, 5)
    assert (answer.status_code, answer.json()["code"]) == (408, "slow_body")


async def test_a_request_id_is_taken_over_if_harmless_and_made_otherwise(serve):
    async with serve() as client:
        kept = await client.get("/livez", headers={"x-request-id": "trace-1.a_b"})
        made = await client.get("/nowhere", headers={"x-request-id": "<script>"})
    assert kept.headers["x-request-id"] == "trace-1.a_b"
    assert made.headers["x-request-id"] == made.json()["request_id"]
    assert "<" not in made.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/classify/paint", 405, "method_not_allowed"),
        ("DELETE", "/domains", 405, "method_not_allowed"),
        ("GET", "/domains/paint/versions/one", 422, "request_invalid"),
    ],
)
async def test_what_the_router_refuses_is_a_problem_too(serve, method, path, status, code):
    async with serve() as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert "allow" in answer.headers or status != 405


async def test_answers_forbid_sniffing_and_storing(serve):
    async with serve() as client:
        answer = await client.post("/classify/paint", content=picture())
    assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-store")


async def test_no_middleware_hides_a_client_that_hangs_up(serve):
    async with serve() as client:
        for layer in client.app.user_middleware:
            assert not (inspect.isclass(layer.cls) and issubclass(layer.cls, BaseHTTPMiddleware))


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.8.9.1", "[::1]:8000", "[::1]"])
async def test_an_open_service_answers_to_the_names_of_its_own_machine(serve, host):
    async with serve() as client:
        answer = await client.post(
            "/classify/paint", content=picture(), headers={"host": host, "origin": f"http://{host}"}
        )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "192.168.1.4:8000"},
        {"host": "[::1"},
        {"host": "localhost:80:80"},
        {"host": "localhost/../x"},
        {"host": "localhost?x"},
        {"host": "evil.example@localhost"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
async def test_an_open_service_takes_nothing_from_other_sites_pages(serve, store, headers):
    async with serve() as client:
        url = "/domains/paint/versions?activate=true"
        answer = await client.post(url, content=colour_bundle(seed=1), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_request")
    assert len(store.versions("paint")) == 1


async def test_a_link_to_an_open_service_works(serve):
    async with serve() as client:
        answer = await client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"})
    assert answer.status_code == 200


async def test_with_keys_any_name_and_page_will_do(serve, tmp_path):
    key = add_key(tmp_path / "keys.json", ["classify"], [])
    headers = {"authorization": f"Bearer {key}", "host": "caspl.example", "origin": "https://app.example"}
    async with serve(read_keys(tmp_path / "keys.json")) as client:
        answer = await client.post("/classify/paint", content=picture(), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "template", "limit"),
    [
        ("POST", "/classify/{domain}", "max_request_bytes"),
        ("POST", "/domains/{domain}/examples", "max_request_bytes"),
        ("PATCH", "/domains/{domain}/examples", None),
        ("POST", "/domains/{domain}/versions", "max_bundle_bytes"),
        ("PUT", "/domains/{domain}/live", None),
    ],
)
def test_bodies_are_bounded_by_what_they_are_for(method, template, limit):
    settings = Settings()
    found = body_limit(method, template, settings)
    assert found == (getattr(settings, limit) if limit else MAX_JSON_BYTES)
