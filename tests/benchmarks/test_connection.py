"""A connection of the load generator: kept while the server keeps it, and every failure is an answer that says so."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from benchmarks import connection as module
from benchmarks.connection import Connection

pytestmark = pytest.mark.anyio

WHOLE = b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\nRetry-After: 3\r\n\r\nfull"


@asynccontextmanager
async def server(*answers, pause_s=0.0):
    """Answers each request with the next of these, piece by piece, and hangs up after one that ends in None."""
    left, seen = list(answers), []

    async def serve(reader, writer):
        while left:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            seen.append((writer.get_extra_info("peername"), head, body))
            for piece in left.pop(0):
                if piece is None:
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)

    async def serve_and_close(reader, writer):
        with suppress(asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    running = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    connection = Connection(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", timeout_s=1)
    try:
        yield connection, seen
    finally:
        connection.close()
        await asyncio.sleep(0.05)
        running.close()
        await running.wait_closed()


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def ask(connection):
    return await connection.post("/classify/a", b"pixels", {"Content-Type": "image/jpeg"})


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_an_answer_is_read_however_it_is_cut(size):
    pieces = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
    async with server(pieces, pause_s=0.001) as (connection, seen):
        reply = await ask(connection)

    assert (reply.status, reply.body, reply.retry_after) == (429, b"full", "3")
    assert seen[0][1].startswith(b"POST /classify/a HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Content-Type: image/jpeg\r\n" in seen[0][1]
    assert seen[0][2] == b"pixels"


async def test_an_answer_in_chunks_is_put_together():
    chunks = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n"]
    async with server(chunks) as (connection, _):
        assert (await ask(connection)).body == b"abc"


async def test_word_that_an_answer_will_come_is_no_answer():
    async with server([b"HTTP/1.1 102 Processing\r\n\r\n", WHOLE]) as (connection, _):
        assert (await ask(connection)).body == b"full"


async def test_what_comes_behind_an_answer_does_not_change_it():
    late = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"
    async with server([WHOLE + late], [WHOLE]) as (connection, _):
        replies = [await ask(connection), await ask(connection)]

    assert [(reply.status, reply.body) for reply in replies] == [(429, b"full")] * 2


async def test_one_connection_carries_request_after_request():
    async with server([WHOLE], [WHOLE], [WHOLE]) as (connection, seen):
        assert [(await ask(connection)).status for _ in range(3)] == [429] * 3

    assert len({address for address, _, _ in seen}) == 1


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_connection_that_the_server_closes_is_made_anew(says_so):
    last = WHOLE.replace(b"Retry", b"Connection: close\r\nRetry") if says_so else WHOLE
    async with server([last, None], [WHOLE]) as (connection, seen):
        assert (await ask(connection)).status == 429
        await asyncio.sleep(0.05)
        assert (await ask(connection)).status == 429

    assert len({address for address, _, _ in seen}) == 2


async def test_a_connection_that_was_idle_for_long_is_made_anew(monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    async with server([WHOLE], [WHOLE]) as (connection, seen):
        await ask(connection)
        await asyncio.sleep(0.1)
        assert (await ask(connection)).status == 429

    assert len({address for address, _, _ in seen}) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([None], b"ConnectionResetError"),
        ([WHOLE[:-2], None], b"ConnectionResetError"),
        ([b"SSH-2.0-OpenSSH\r\n"], b"no answer in HTTP"),
        ([b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"], b"no answer in HTTP"),
        ([WHOLE[:-2]], b"TimeoutError"),
    ],
)
async def test_no_whole_answer_is_a_failure_that_says_what_happened_and_the_next_request_is_not_harmed(answer, said):
    async with server(answer, [WHOLE]) as (connection, _):
        failed, good = await ask(connection), await ask(connection)

    assert failed.status == 0
    assert said in failed.body
    assert failed.done_s > 0
    assert (good.status, good.body) == (429, b"full")
