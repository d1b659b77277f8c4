"""Busy time of concurrent calls, stuck calls, and the classification of exceptions."""

import contextlib
import threading

import pytest
import torch

from service.engine.device_health import Activity, Fault, fault_of

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def activity(clock):
    return Activity(stuck_after_s=5.0, clock=clock)


class OtherCall:
    """A call on a thread of its own."""

    def __init__(self, activity):
        self.began, self.end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(activity,))
        self.thread.start()
        assert self.began.wait(10)

    def run(self, activity):
        with activity.call():
            self.began.set()
            assert self.end.wait(10)

    def finish(self):
        self.end.set()
        self.thread.join(10)


def test_time_in_which_several_calls_run_counts_once(activity, clock):
    with activity.call():
        clock.now_s = 1.0
        other = OtherCall(activity)
        clock.now_s = 3.0
        assert activity.busy_s == 3.0
    assert activity.is_busy
    clock.now_s = 4.0
    other.finish()
    clock.now_s = 9.0
    assert (activity.busy_s, activity.is_busy) == (4.0, False)


def test_a_call_that_fails_ends(activity, clock):
    with contextlib.suppress(ValueError), activity.call():
        clock.now_s = 2.0
        raise ValueError
    assert (activity.busy_s, activity.is_busy) == (2.0, False)


def test_a_call_is_stuck_after_the_limit_unless_it_reports_progress(activity):
    with activity.call():
        activity.tick(5.0)
        assert not activity.is_stuck
        activity.report_progress()
        activity.tick(5.0)
        assert not activity.is_stuck
        activity.tick(0.1)
        assert activity.is_stuck
    assert not activity.is_stuck


def test_the_slowest_of_several_calls_counts_and_threads_outside_calls_do_not(activity):
    other = OtherCall(activity)
    activity.tick(4.0)
    activity.report_progress()
    with activity.call():
        activity.tick(2.0)
        activity.report_progress()
        assert activity.is_stuck
        other.finish()
        assert not activity.is_stuck


def works():
    """The device synchronizes."""


def lost():
    raise torch.AcceleratorError("CUDA error: unknown error")


@pytest.mark.parametrize("error", [RuntimeError("any text"), torch.AcceleratorError("CUDA error: 721"), OUT_OF_MEMORY])
def test_a_device_that_does_not_synchronize_after_an_error_is_lost(error):
    assert fault_of(error, lost) is Fault.LOST


def test_an_error_of_python_does_not_wait_for_the_device():
    assert fault_of(ValueError("device-side assert"), lost) is Fault.NONE


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        RuntimeError("CUDA error: out of memory"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_errors_that_mean_out_of_memory(error):
    assert fault_of(error, works) is Fault.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError("CUDA error: invalid argument")]
)
def test_other_errors_of_a_device_that_works_are_no_device_fault(error):
    assert fault_of(error, works) is Fault.NONE
