"""Services in separate processes, and concurrent clients."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from tests.service.fakes import picture

SERVE = """
import asyncio, json, sys, time
from prompt_store.stores import open_store
from service import server
from service.observability import logs
from service.process import end_process
from service.settings import Settings
from tests.service.fakes import FakeModel

model = FakeModel()
server.load_model = lambda settings: model
settings = Settings(**{"port": 0, "store": sys.argv[1], "store_poll_s": 0} | json.loads(sys.argv[2]))
logs.install(settings.log_format, settings.log_level)

def announce(context, address):
    exec(sys.argv[3])
    print(address, flush=True)

store = open_store(settings.store, create=True, cache=settings.store_cache, allow_stale=True)
end_process(server.run(settings, store, announce))
"""
"""Serves a fake model; the third argument is code that runs once requests are accepted."""
N_CLIENTS = 6


def children(pid):
    """Processes that a process has started; none when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(is_true, within_s=30):
    ends_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < ends_s, "it did not happen"
        time.sleep(0.01)


def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    return kept | {"OMP_NUM_THREADS": "1"}


def command_of(store, *, once_ready="pass", **settings):
    return [
        sys.executable,
        "-c",
        SERVE,
        store.address,
        json.dumps({"drain_delay_s": 2, "log_level": "warning"} | settings),
        once_ready,
    ]


@contextmanager
def serving(store, *, once_ready="pass", log=None, **settings):
    """A service in separate processes: its first process and its URL; `log` receives stderr."""
    command = command_of(store, once_ready=once_ready, **settings)
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=log, text=True) as process:
        started = [process.pid]
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), "the service did not start"
            started += children(process.pid)
            yield process, url
        finally:
            started += children(process.pid)
            process.kill()
    eventually(lambda: not any(is_alive(pid) for pid in started))


def client_of(url):
    """A client that opens a new connection for every request."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=20, trust_env=False, limits=limits)


class JoinedThreads:
    """Threads that run during a block; at its end `is_over` is set and they are joined."""

    def __init__(self, *jobs):
        self.is_over = threading.Event()
        self._threads = [threading.Thread(target=job) for job in jobs]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self._threads:
            thread.join(30)


class ConcurrentClients(JoinedThreads):
    """Clients that send requests without a pause until the block ends or connections are refused.

    Half of them keep their connections. `answers` has the statuses, `broken` the errors of requests without a response.
    """

    def __init__(self, url):
        self.answers, self.broken = [], []
        super().__init__(*(partial(self._send_requests, url, n % 2) for n in range(N_CLIENTS)))

    def _send_requests(self, url, keeps_connections):
        body = picture()
        client = httpx.Client(base_url=url, timeout=20, trust_env=False) if keeps_connections else client_of(url)
        with client:
            while not self.is_over.is_set():
                try:
                    self.answers.append(client.post("/classify/paint", content=body).status_code)
                except httpx.ConnectError:
                    return
                except httpx.TransportError as error:
                    self.broken.append(error)
