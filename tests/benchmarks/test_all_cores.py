import threading

import pytest
import torch

from benchmarks import all_cores
from benchmarks.all_cores import AllCores


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    return AllCores()


def test_every_core_does_the_work_once_at_the_same_time(cores):
    together, threads = threading.Barrier(3, timeout=10), set()

    def work():
        together.wait()
        threads.add(threading.current_thread())

    cores.on_each(work)
    assert len(threads) == cores.n == 3


def test_what_fails_on_a_core_fails_the_turn(cores):
    with pytest.raises(ZeroDivisionError):
        cores.on_each(lambda: 1 // 0)
    assert cores.on_one(lambda: 7) == 7


def test_rates_are_of_all_cores_images_and_the_median_turn(cores, monkeypatch):
    taken = {"fast": [0.5, 9.0, 0.25], "slow": [2.0, 1.0, 4.0]}
    monkeypatch.setattr(all_cores, "in_turn", lambda *_, **__: taken)
    rates, n_rounds = cores.images_per_s({}, 4, budget_s=1, on_round=print)
    assert rates == {"fast": 3 * 4 / 0.5, "slow": 3 * 4 / 2.0}
    assert n_rounds == 3
