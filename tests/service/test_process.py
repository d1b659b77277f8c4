"""Usable cores, OpenMP spinning, torch threads, free memory, and the interpreter of a serving process."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from service.process import (
    SPIN_COUNT,
    SWITCH_INTERVAL_S,
    MemoryReturn,
    set_openmp_spinning,
    tune_interpreter,
    usable_cores,
    use_one_torch_thread,
)

N_CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", f"{(N_CORES + 5) * 100000} 100000\n", "0 0"])
def test_without_a_quota_or_with_a_larger_one_all_cores_count(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == N_CORES
    assert usable_cores(tmp_path / "nothing") == N_CORES


@pytest.mark.parametrize("text", ["100000 100000\n", "50000 100000\n", "1 100000\n"])
def test_a_quota_of_one_core_or_less_is_one_core(tmp_path, text):
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize(("text", "n_cores"), [("-1", N_CORES), ("100000", 1), ("25000", 1)])
def test_cgroup_v1_has_quota_and_period_in_two_files(tmp_path, text, n_cores):
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{text}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == n_cores


def test_a_quota_between_whole_numbers_is_rounded_up(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores(tmp_path) == 3


def test_openmp_threads_spin_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    set_openmp_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    set_openmp_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT


def test_one_torch_thread_is_set_for_the_calling_thread_only():
    before, seen = torch.get_num_threads(), []

    def limited():
        use_one_torch_thread()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=limited)
    thread.start()
    thread.join()
    assert seen == [1]
    assert torch.get_num_threads() == before


@pytest.fixture
def tuned():
    """The interpreter of a serving process; restored afterwards."""
    before_s = sys.getswitchinterval()
    tune_interpreter()
    yield
    sys.setswitchinterval(before_s)
    gc.unfreeze()


class Cycle:
    """Refers to itself, so that only the collector can end it."""

    def __init__(self):
        self.me = self


@pytest.mark.usefixtures("tuned")
def test_existing_objects_are_frozen_and_new_garbage_is_still_collected():
    assert gc.get_freeze_count() > 10_000
    gone = weakref.ref(Cycle())
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("tuned")
def test_the_switch_interval_is_lowered():
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)


@pytest.mark.anyio
async def test_free_memory_is_returned_once_for_all_requests_of_a_while_off_the_event_loop(monkeypatch):
    loop, threads, memory, is_returned = asyncio.get_running_loop(), [], MemoryReturn(), asyncio.Event()

    def return_memory():
        threads.append(threading.get_ident())
        loop.call_soon_threadsafe(is_returned.set)

    monkeypatch.setattr("service.process.MEMORY_RETURN_S", 0.01)
    monkeypatch.setattr("service.process.return_free_memory", return_memory)
    for _ in range(2):
        is_returned.clear()
        for _ in range(5):
            memory.request()
        await asyncio.wait_for(is_returned.wait(), 10)
    await asyncio.sleep(0.05)
    assert len(threads) == 2
    assert threading.get_ident() not in threads


LOOK = """
import signal, sys
from prompt_store.store import Store
from service import server
from service.settings import Settings
from tests.service.fakes import FakeModel

server.load_model = lambda settings: FakeModel()
settings = Settings(port=0, store=sys.argv[1], web_workers=int(sys.argv[2]), drain_delay_s=0, store_poll_s=0)

def announce(context, address):
    print(sys.getswitchinterval())
    signal.raise_signal(signal.SIGINT)

sys.exit(server.run(settings, Store.open(settings.store), announce))
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_web_workers", [0, 1])
def test_a_serving_process_tunes_its_interpreter(store, n_web_workers):
    command = [sys.executable, "-c", LOOK, str(store.root), str(n_web_workers)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CASPL_")}
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert float(ended.stdout.split()[-1]) == pytest.approx(SWITCH_INTERVAL_S)
