"""How this process uses the machine: cores, OpenMP spinning, torch threads, GIL switch interval, GC, memory, exit."""

import asyncio
import ctypes
import gc
import logging
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

CGROUP: Final = Path("/sys/fs/cgroup")
SPIN_COUNT: Final = "4000"
"""Iterations of OpenMP's wait loop, a few tenths of a millisecond: longer than one step of a forward."""
MEMORY_RETURN_S: Final = 1.0
SWITCH_INTERVAL_S: Final = 2e-5
"""The GIL's switch interval; see docs/decisions/0016."""


def set_openmp_spinning() -> None:
    """Have OpenMP threads spin briefly between the steps of a forward; call before torch is loaded.

    torch's CPU threads synchronise after each of a forward's 150 steps. Sleeping and waking in between takes as long as
    a step of a single image; by default they spin for so long that they block whatever runs next on their core.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def use_one_torch_thread() -> None:
    """Limit torch to one core on the calling thread, without an OpenMP pool."""
    import torch  # noqa: PLC0415  a web process loads no torch

    torch.set_num_threads(1)


def tune_interpreter() -> None:
    """Lower the GIL's switch interval and exempt existing objects from garbage collection; call after startup.

    torch takes the GIL at each Python step of a forward. With Python's 5 ms switch interval, a busy event loop makes
    the forward ten times as slow. The garbage collector would scan 400,000 objects of torch and other libraries and
    block all requests for 200 ms.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()


def end_process(status: int) -> NoReturn:
    """Flush output and end the process without the interpreter's teardown.

    The teardown joins threads, which may hang in a driver, and has native libraries print reports on leaked objects.
    """
    logging.shutdown()
    with suppress(OSError, ValueError):  # a closed pipe
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def return_free_memory() -> None:
    """Return freed memory to the system; a no-op without glibc.

    glibc keeps freed blocks of up to 32 MiB for each thread.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


class MemoryReturn:
    """Returns freed memory to the system at most once per second, off the event loop; `request` schedules it."""

    def __init__(self) -> None:
        self._is_scheduled = False

    def request(self) -> None:
        """Return free memory in a second, when the caller's objects are gone."""
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_later(MEMORY_RETURN_S, self._run)

    def _run(self) -> None:
        self._is_scheduled = False
        asyncio.get_running_loop().run_in_executor(None, return_free_memory)


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores of this process's CPU affinity, or its container's CPU quota rounded up if that is less; at least one.

    torch and Python see all cores of the machine. Threads beyond the quota are throttled in the middle of a forward.

    Args:
        cgroup: where the kernel mounts control groups.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores(cgroup)
    return bound if quota >= bound else max(1, math.ceil(quota))


def _quota_cores(cgroup: Path) -> float:
    """CPU quota divided by its period, for both cgroup versions; infinite without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
        except (OSError, ValueError):  # no such file, or the word `max`: no quota
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf
