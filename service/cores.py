"""How many processor cores this process may keep busy, and how its threads wait for each other.

A container's quota is no number of cores: torch and Python see all of the machine's, and threads beyond the quota are
stopped for the rest of every period, in the middle of a forward.
"""

import math
import os
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")
SPINS: Final = "4000"
"""Turns of the waiting loop, some tenths of a millisecond: longer than from one step of a forward to the next."""


def spin_between_steps() -> None:
    """Have torch's threads wait awake for the next step of a forward; to be called before torch is loaded.

    Torch's threads on a CPU are those of GNU's OpenMP. They meet after each of a forward's 150 steps; to be put to
    sleep and woken in between takes as long as a step of a single image. Left alone they wait awake for so long that
    they take the core from whatever runs next.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process is bound to, or as many as its container's quota comes to if that is less; at least one.

    Args:
        cgroup: where the kernel tells a container its limits.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores(cgroup)
    return bound if quota >= bound else max(1, math.ceil(quota))


def _quota_cores(cgroup: Path) -> float:
    """CPU time per time, by either version of the kernel's interface; infinite where there is no quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
        except (OSError, ValueError):  # not there, or the word `max`: no quota
            continue
        if quota > 0 and period > 0:
            return quota / period
    return math.inf
