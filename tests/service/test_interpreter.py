"""The interpreter of a process that serves: whom it makes wait, and for how long."""

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
import uvicorn

from service.interpreter import HAND_OVER_S, prepare_interpreter
from service.workers.web_process import WebServer


@pytest.fixture
def prepared():
    """The interpreter as a process has it that serves; given back as it was."""
    before_s = sys.getswitchinterval()
    prepare_interpreter()
    yield
    sys.setswitchinterval(before_s)
    gc.unfreeze()


class Cycle:
    """Refers to itself, so that only the collector can end it."""

    def __init__(self):
        self.me = self


@pytest.mark.usefixtures("prepared")
def test_what_lives_as_long_as_the_process_is_not_looked_at_by_the_collector_and_garbage_still_goes():
    assert gc.get_freeze_count() > 10_000
    gone = weakref.ref(Cycle())
    gc.collect()
    assert gone() is None


def steps_beside_a_busy_thread(during_s):
    """How often a thread gets the interpreter back that lets go of it in between, beside one that never does."""
    is_over = threading.Event()

    def never_rest():
        while not is_over.is_set():
            sum(range(50))

    busy = threading.Thread(target=never_rest)
    busy.start()
    n_steps, end_s = 0, time.monotonic() + during_s
    while time.monotonic() < end_s:
        time.sleep(5e-4)
        n_steps += 1
    is_over.set()
    busy.join()
    return n_steps


def test_a_thread_that_computes_gets_its_turn_beside_one_that_never_rests(request):
    n_before = steps_beside_a_busy_thread(0.5)
    request.getfixturevalue("prepared")
    assert sys.getswitchinterval() == pytest.approx(HAND_OVER_S)
    assert steps_beside_a_busy_thread(0.5) > 3 * n_before


LOOK = """
import signal, sys
from prompt_store.store import Store
from service import server
from service.settings import Settings
from tests.service.fakes import FakeModel

server.load_model = lambda settings: FakeModel()
settings = Settings(port=0, store=sys.argv[1], web_workers=int(sys.argv[2]), drain_delay_s=0, store_poll_s=0)

def announce(runtime, address):
    print(sys.getswitchinterval())
    signal.raise_signal(signal.SIGINT)

sys.exit(server.run(settings, Store.open(settings.store), announce))
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_web_workers", [0, 1])
def test_a_process_that_serves_has_its_interpreter_prepared(store, n_web_workers):
    command = [sys.executable, "-c", LOOK, str(store.root), str(n_web_workers)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert float(ended.stdout.split()[-1]) == pytest.approx(HAND_OVER_S)


@pytest.mark.anyio
async def test_a_web_process_has_its_interpreter_prepared(monkeypatch, request):
    async def startup(*_, **__):
        pass

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr("service.workers.web_process.prepare_interpreter", lambda: request.getfixturevalue("prepared"))
    seen_s = []
    await WebServer(uvicorn.Config("no:app"), lambda: seen_s.append(sys.getswitchinterval())).startup()
    assert seen_s == [pytest.approx(HAND_OVER_S)]
