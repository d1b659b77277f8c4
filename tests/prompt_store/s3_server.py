"""A real S3 server in a process of its own, and a proxy in front of it that drops, delays and damages responses."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
NOT_FORWARDED = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>text of the server with a secret</Message></Error>"
REFUSALS = {
    "skewed": (403, "RequestTimeTooSkewed"),
    "denied": (403, "AccessDenied"),
    "conflict": (409, "ConditionalRequestConflict"),
}
START = """
import sys
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


@contextmanager
def moto_server():
    """Start moto's server; yields its port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", START, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ends_s = time.monotonic() + 60
            while True:
                assert process.poll() is None, "moto's server ended"
                with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
                    break
                assert time.monotonic() < ends_s, "moto's server did not start"
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


class FaultProxy(ThreadingHTTPServer):
    """Forwards to a server, one write at a time: moto's check of a condition and its write are two steps.

    `fault(method, key)` names what happens to a request: None, `refuse` (no answer, not forwarded), `lose` (forwarded,
    no answer), `500` and `503` (not forwarded), `500 after` (forwarded), `half` (half of the body of the response),
    `skewed`, `denied` and `conflict` (the error of S3), or `slow` (forwarded after `delay_s`). `requests` lists method
    and target of all requests.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream_port):
        self.upstream_port = upstream_port
        self.writing = threading.Lock()
        self.fault = lambda method, key: None
        self.is_down = False
        self.ignores_conditions = False
        self.delay_s = 0.5
        self.requests = []
        super().__init__((HOST, 0), Forwarder)

    @property
    def url(self):
        return f"http://{HOST}:{self.server_address[1]}"

    def once(self, fault, method, part=""):
        """Apply a fault to the next request with this method and this part in its target, and to no other.

        Returns a list that has the fault until then.
        """
        left = [fault]

        def find(found, key):
            return left.pop() if left and found == method and part in key else None

        self.fault = find
        return left

    def handle_error(self, request, client_address):
        """A client went away."""


class Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *arguments):
        pass

    def forward(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests.append((self.command, self.path))
        fault = "refuse" if server.is_down else server.fault(self.command, self.path)
        if fault == "refuse":
            self.close_connection = True
            return
        if fault in {"500", "503"}:
            self.answer(int(fault), {}, ERROR.format("InternalError" if fault == "500" else "SlowDown").encode())
            return
        if fault in REFUSALS:
            status, code = REFUSALS[fault]
            self.answer(status, {}, ERROR.format(code).encode())
            return
        if fault == "slow":
            time.sleep(server.delay_s)
        status, headers, content = self.upstream(body)
        if fault == "lose":
            self.close_connection = True
        elif fault == "500 after":
            self.answer(500, {}, ERROR.format("InternalError").encode())
        else:
            self.answer(status, headers, content, n_sent=len(content) // 2 if fault == "half" else None)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward  # noqa: N815  names of the base class

    def upstream(self, body):
        ignored = {"if-none-match"} if self.server.ignores_conditions else set()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in NOT_FORWARDED | ignored}
        connection = http.client.HTTPConnection(HOST, self.server.upstream_port, timeout=30)
        is_write = self.command in {"PUT", "DELETE", "POST"}
        try:
            with self.server.writing if is_write else nullcontext():
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def answer(self, status, headers, content, n_sent=None):
        kept = {k: v for k, v in headers.items() if k.lower() not in NOT_FORWARDED | {"date", "server"}}
        is_head = self.command == "HEAD"
        length = next((v for k, v in kept.items() if k.lower() == "content-length"), None) if is_head else None
        kept = {k: v for k, v in kept.items() if k.lower() != "content-length"}
        self.send_response(status)
        for name, value in kept.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content if n_sent is None else content[:n_sent])
        if n_sent is not None:
            self.close_connection = True


@contextmanager
def fault_proxy(upstream_port):
    proxy = FaultProxy(upstream_port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
