"""The interpreter of a process that serves: whom it makes wait, and for how long."""

import gc
import sys
import threading
import time
import weakref

import pytest

from service.interpreter import HAND_OVER_S, prepare_interpreter


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
        time.sleep(0)
        n_steps += 1
    is_over.set()
    busy.join()
    return n_steps


def test_a_thread_that_computes_gets_its_turn_beside_one_that_never_rests(request):
    n_before = steps_beside_a_busy_thread(0.5)
    request.getfixturevalue("prepared")
    assert sys.getswitchinterval() == pytest.approx(HAND_OVER_S)
    assert steps_beside_a_busy_thread(0.5) > 3 * n_before
