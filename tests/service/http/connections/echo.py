"""The protocol on a real socket in front of a small application, and raw clients."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from service.http.server import http_config, listen
from service.settings import Settings

HOST = b"Host: x\r\n"
GET = b"GET /echo HTTP/1.1\r\n" + HOST
SLOW = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
IN_CHUNKS = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
OFFER = HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
MAX_READ_BYTES = 256 * 1024
"""asyncio's largest read."""
LARGE_BYTES = 32 * 2**20
"""More than the buffers of a connection."""
handled = []


async def application(scope, receive, send):
    """Responds with 204 before it reads a body; under /echo with what it read; under /slow after 0.6 s; under /large
    with `LARGE_BYTES`.

    Notes paths in `handled`, and a disconnect under /wait.
    """
    handled.append(scope["path"])
    if scope["path"] == "/slow":
        await asyncio.sleep(0.6)
    body, more = b"", scope["path"] in {"/echo", "/wait"}
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            handled.append("disconnect")
            return
        body, more = body + message["body"], message["more_body"] or scope["path"] == "/wait"
    if scope["path"] == "/large":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE_BYTES)]}
        )
        await send({"type": "http.response.body", "body": bytes(LARGE_BYTES)})
        return
    if scope["path"] != "/echo":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    found = {"body": body.decode(), "query": scope["query_string"].decode(), "headers": headers}
    data = json.dumps(found).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})


@contextmanager
def serving(**changes):
    """The protocol in front of that application: 0.5 s between requests, 1.2 s for the rest of a body."""
    handled.clear()
    config = http_config(application, Settings(**{"max_body_s": 1.2} | changes))
    config.lifespan, config.timeout_keep_alive = "off", 0.5
    with listen("127.0.0.1", 0) as listener:
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        running.should_exit = True
        thread.join(10)


def responses(address, *pieces, pause_s=0.0):
    """All bytes that come back for what is sent piece by piece, until the server closes the connection."""
    with socket.create_connection(address, timeout=5) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except (BrokenPipeError, ConnectionResetError):
            return b""


def echoed(address, *pieces, pause_s=0.0):
    """What the application read, request by request."""
    text = responses(address, *pieces, pause_s=pause_s).decode()
    assert statuses(text.encode()) == [200] * text.count("HTTP/1.1 "), text
    return [json.loads(line[: line.rindex("}") + 1]) for line in text.split("\r\n") if line.startswith("{")]


def statuses(response):
    return [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]]


def is_refused(response):
    """One 400, or a connection that was closed while the client was still sending; the application saw nothing."""
    return not handled and (response == b"" or statuses(response) == [400])
