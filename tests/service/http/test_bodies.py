"""Request bodies: complete or refused, bounded in memory together, and no slow client in the way of the others."""

import asyncio
import tracemalloc
from contextlib import asynccontextmanager

import pytest

from service.access.rules import Endpoint, find_endpoint
from service.http.body import tenant_of
from tests.service.fakes import colour_bundle, picture
from tests.service.http.crowd import crowd

pytestmark = pytest.mark.anyio
IN_BOTH_FORMS = True

MIB = 2**20
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def part(field="images", data=None):
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="a.png"\r\n\r\n'
    return head.encode() + (picture() if data is None else data) + b"\r\n"


@pytest.mark.parametrize(("path", "field"), [("/classify/paint", "images"), ("/classify", "paint")])
@pytest.mark.parametrize(
    "cut",
    [
        lambda one: one + one,
        lambda one: one + one + b"--x",
        lambda one: one + one + b"--x-",
        lambda one: one + one[:-2],
        lambda one: one + one[: len(one) // 2],
        lambda one: one + one[:40],
        lambda one: one + b"--x\r\n",
        lambda _: b"--x",
    ],
    ids=["no end", "no hyphens", "one hyphen", "no line end", "in the data", "in the head", "no head", "no part"],
)
async def test_an_incomplete_multipart_body_is_422_and_nothing_is_scored(serve, model, path, field, cut):
    async with serve() as client:
        model.batches.clear()
        answer = await client.post(path, content=cut(part(field)), headers=MULTIPART)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert model.batches == []


async def test_the_answer_to_an_incomplete_multipart_body_says_so(serve):
    async with serve() as client:
        answer = await client.post("/classify/paint", content=part() + part(), headers=MULTIPART)
    assert "incomplete" in answer.json()["detail"]


@pytest.mark.parametrize("end", [b"--x--", b"--x--\r\n", b"--x--\r\nan epilogue"])
async def test_a_complete_multipart_body_is_answered_whatever_follows_it(serve, end):
    async with serve() as client:
        answer = await client.post("/classify/paint", content=part() + part() + end, headers=MULTIPART)
    assert len(answer.json()["results"]) == 2


class SlowBody:
    """A body of `n_bytes` whose last byte comes when `gate` is set; `has_begun` once the others were read."""

    def __init__(self, n_bytes):
        self.n_bytes, self.gate, self.has_begun = n_bytes, asyncio.Event(), asyncio.Event()

    async def __aiter__(self):
        yield bytes(self.n_bytes - 1)
        self.has_begun.set()
        await self.gate.wait()
        yield bytes(1)


@asynccontextmanager
async def holding(client, path, n_bytes):
    """A request with a body in memory that does not end before the block does."""
    body = SlowBody(n_bytes)
    call = asyncio.ensure_future(client.post(path, content=body))
    await body.has_begun.wait()
    await asyncio.sleep(0)
    yield
    body.gate.set()
    await call


LIMITS = {"max_admitted_bytes": 300_000, "max_request_bytes": 200_000, "max_bundle_bytes": 200_000}


async def test_bodies_beyond_the_budget_are_503_with_retry_after_and_room_comes_back(serve):
    async with serve(**LIMITS) as client:
        async with holding(client, "/classify/paint", 150_000):
            refused = await client.post("/classify/paint", content=bytes(100_000))
            small = await client.post("/classify/paint", content=picture())
        after = await client.post("/classify/paint", content=bytes(100_000))
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (small.status_code, after.status_code) == (200, 422)


async def test_the_budget_counts_bytes_that_were_not_announced(serve):
    async def chunks():
        for _ in range(10):
            yield bytes(10_000)

    async with serve(**LIMITS) as client:
        async with holding(client, "/classify/paint", 150_000):
            refused = await client.post("/classify/paint", content=chunks())
        after = await client.post("/classify/paint", content=chunks())
    assert (refused.status_code, after.status_code) == (503, 422)


async def test_classify_requests_and_uploads_share_the_budget(serve, store):
    async with serve(**LIMITS) as client:
        async with holding(client, "/domains/other/versions", 180_000):
            refused = await client.post("/domains/paint/versions", content=bytes(100_000))
            classified = await client.post("/classify/paint", content=bytes(100_000))
            small = await client.post("/classify/paint", content=picture())
        published = await client.post("/domains/paint/versions", content=colour_bundle(seed=7))
    assert (refused.status_code, classified.status_code, small.status_code) == (503, 503, 200)
    assert published.status_code == 201


async def test_a_greedy_client_leaves_room_for_another_domain(serve):
    async with serve(**LIMITS) as client, holding(client, "/classify/paint", 150_000):
        greedy = await client.post("/classify/paint", content=bytes(60_000))
        other = await client.post("/classify/ink", content=bytes(60_000))
    assert (greedy.status_code, other.status_code) == (503, 422)


async def test_a_request_counts_as_open_once_its_body_is_there(serve):
    async with (
        serve(max_open_requests=1) as client,
        holding(client, "/classify/paint", 100),
        holding(client, "/classify/paint", 100),
    ):
        answer = await client.post("/classify/paint", content=picture())
    assert answer.status_code == 200


async def test_a_body_that_ends_while_too_many_requests_are_open_is_429(serve, model):
    async with serve(max_open_requests=3, max_batch_rows=1) as client:
        body = SlowBody(100)
        late = asyncio.ensure_future(client.post("/classify/paint", content=body))
        await body.has_begun.wait()
        model.gate.clear()
        kept = await crowd(client)
        body.gate.set()
        assert (await late).status_code == 429
        model.gate.set()
        assert [(await one).status_code for one in kept] == [200] * 3
        assert (await client.post("/classify/paint", content=picture())).status_code == 200


@pytest.mark.parametrize("path", ["/classify/paint", "/domains/paint/versions"])
async def test_a_body_below_the_minimum_rate_is_408_and_its_connection_is_closed(serve, monkeypatch, path):
    monkeypatch.setattr("service.http.body.RATE_WINDOW_S", 0.3)
    async with serve(min_body_rate=1000) as client:
        slow = SlowBody(100)
        answer = await asyncio.wait_for(client.post(path, content=slow), 10)
    assert (answer.status_code, answer.json()["code"]) == (408, "slow_body")
    assert answer.headers["connection"] == "close"
    assert "received 99" in answer.json()["detail"]


async def test_a_body_that_stalls_after_a_fast_start_is_408_in_the_next_window(serve, monkeypatch):
    monkeypatch.setattr("service.http.body.RATE_WINDOW_S", 0.3)
    async with serve(min_body_rate=1000) as client:
        answer = await asyncio.wait_for(client.post("/classify/paint", content=SlowBody(100_000)), 10)
    assert (answer.status_code, "received 0" in answer.json()["detail"]) == (408, True)


async def test_a_slow_body_above_the_minimum_rate_is_read_to_its_end(serve, monkeypatch):
    monkeypatch.setattr("service.http.body.RATE_WINDOW_S", 2.0)
    data = picture()

    async def slowly():
        for begin in range(0, len(data), len(data) // 9):
            await asyncio.sleep(0.25)
            yield data[begin : begin + len(data) // 9]

    async with serve(min_body_rate=1) as client:
        assert (await client.post("/classify/paint", content=slowly())).status_code == 200


@pytest.mark.parametrize("version", ["true", '"2"', "2.0", "2e0", "[2]", "null", "0"])
async def test_only_an_integer_is_a_version(serve, store, version):
    store.add("paint", colour_bundle(seed=1))
    async with serve() as client:
        headers = {"content-type": "application/json"}
        answer = await client.put("/domains/paint/live", content=f'{{"version": {version}}}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")
    assert "version" in answer.json()["detail"]
    assert store.live("paint").version == 1


def scope_of(path, headers=()):
    return {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": list(headers),
        "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("192.0.2.1", 1), "root_path": "",
        "asgi": {"version": "3.0"}, "query_string": b"",
    }  # fmt: skip


BODIES = {
    "raw": (b"image/png", bytes(24 * MIB)),
    "multipart": (MULTIPART["content-type"].encode(), part(data=bytes(9 * MIB)) * 2 + b"--x--"),
    "multipart with one large file": (MULTIPART["content-type"].encode(), part(data=bytes(24 * MIB)) + b"--x--"),
    "JSON of strings": (b"application/json", b'{"images":[' + b'"",' * (8 * MIB) + b'""]}'),
    "JSON of numbers": (b"application/json", b'{"images":[' + b"1," * (12 * MIB) + b"1]}"),
    "JSON with an image": (b"application/json", b'{"images":[{"b64":"' + b"A" * (12 * MIB) + b'"}]}'),
    "JSON with a labelled image": (
        b"application/json",
        b'{"images":[{"label":null,"b64":"' + b"A" * (12 * MIB) + b'"}]}',
    ),
    "multipart with a long name": (
        MULTIPART["content-type"].encode(),
        b'--x\r\nContent-Disposition: form-data; name="' + b"A" * (24 * MIB) + b'"; filename="a"\r\n\r\nx\r\n--x--',
    ),
    "JSON with a long label": (b"application/json", b'{"images":[{"label":"' + b"A" * (24 * MIB) + b'","b64":""}]}'),
}


@pytest.mark.parametrize("path", ["/classify/paint", "/domains/paint/examples"])
@pytest.mark.parametrize(("kind", "body"), BODIES.values(), ids=BODIES)
async def test_a_request_takes_at_most_16_mib_more_than_its_body(serve, path, kind, body):
    async with serve() as client:
        parts = [body[begin : begin + 65_536] for begin in range(0, len(body), 65_536)]
        messages = iter([*({"type": "http.request", "body": one, "more_body": True} for one in parts),
                         {"type": "http.request"}])  # fmt: skip

        async def receive():
            message = next(messages, None)
            return message or await asyncio.Future()

        async def send(_):
            pass

        tracemalloc.start()
        await client.app(scope_of(path, [(b"host", b"localhost"), (b"content-type", kind)]), receive, send)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < len(body) + 16 * MIB


@pytest.mark.parametrize(
    ("template", "changes", "tenant"),
    [
        ("/classify/{domain}", {}, ("192.0.2.1", "paint")),
        ("/classify/{domain}", {"caspl.actor": "k3v9x2ab"}, ("k3v9x2ab", "paint")),
        ("/classify/{domain}", {"client": None}, ("", "paint")),
        ("/domains/{domain}/examples", {}, ("192.0.2.1", "paint")),
        ("/domains/{domain}/versions", {}, ("192.0.2.1", "")),
    ],
)
def test_memory_is_shared_between_pairs_of_client_and_domain(template, changes, tenant):
    assert tenant_of(scope_of("/any") | changes, Endpoint(template, {}, "paint")) == tenant


def test_a_request_for_several_domains_belongs_to_none():
    assert tenant_of(scope_of("/classify"), find_endpoint("/classify")) == ("192.0.2.1", "")


async def test_memory_is_returned_after_large_bodies_only(serve, monkeypatch):
    returned = []
    monkeypatch.setattr("service.http.middleware.request.MemoryReturn.request", lambda _: returned.append(1))
    async with serve() as client:
        for n_bytes in (7 * MIB, 9 * MIB):
            await client.post("/classify/paint", content=picture() + bytes(n_bytes))
    assert returned == [1]
