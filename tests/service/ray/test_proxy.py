"""The middleware of Ray's proxies, around applications that behave as Ray does."""

import httpx
import pytest

from service.ray.proxy import ProxyMiddleware


async def respond(send, status, body, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def request(app, path="/", **options):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(ProxyMiddleware(app)), base_url="http://ray") as client:
        return await client.get(path, **options)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/classify/thermal", b"thermal"),
        ("/domains/thermal/versions", b"thermal"),
        ("/v2/models/thermal/infer", b"thermal"),
        ("/caspl/classify/thermal", b"thermal"),
        ("/classify", None),
        ("/domains", None),
        ("/metrics", None),
    ],
)
async def test_the_domain_in_the_path_is_the_routing_key(path, key):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope["headers"])
        await respond(send, 200, b"")

    await request(app, path, headers={"X-Session-Id": "of the client"})

    assert seen.get(b"x-session-id") == key


@pytest.mark.anyio
async def test_a_request_whose_replica_ended_gets_a_502_that_clients_repeat():
    async def app(scope, receive, send):
        """Ray's proxy ends without a response."""

    response = await request(app)

    assert response.status_code == 502
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "replica_lost"


@pytest.mark.anyio
async def test_without_an_application_the_answer_is_503_and_not_404():
    async def app(scope, receive, send):
        await respond(send, 404, b"Path '/classify/thermal' not found. Ping http://.../-/routes for available routes.")

    response = await request(app, "/classify/thermal")

    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["code"] == "draining"


@pytest.mark.anyio
async def test_the_services_own_404_is_passed_on_unchanged():
    async def app(scope, receive, send):
        await respond(send, 404, b'{"code": "domain_not_found"}', [(b"content-type", b"application/problem+json")])

    response = await request(app, "/classify/nope")

    assert (response.status_code, response.json()) == (404, {"code": "domain_not_found"})


@pytest.mark.anyio
async def test_a_response_has_one_request_id():
    async def app(scope, receive, send):
        await respond(send, 200, b"", [(b"x-request-id", b"service"), (b"X-Request-ID", b"ray"), (b"x-other", b"1")])

    response = await request(app)

    assert response.headers.get_list("x-request-id") == ["service"]
    assert response.headers["x-other"] == "1"
