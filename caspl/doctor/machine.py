"""Checks of the machine: processor, memory, disk."""

import os
import platform
import re
import shutil
from pathlib import Path
from typing import Final

from caspl.doctor.finding import Finding, ok, problem, warning

GIB: Final = 2**30
FEATURES: Final = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16")
"""Flags in /proc/cpuinfo of instructions that speed up inference."""
LOW_MEMORY_BYTES: Final = 2 * GIB
LOW_DISK_BYTES: Final = GIB
NO_DISK_BYTES: Final = 64 * 2**20
"""Below this the service adds no examples."""


def check_python() -> Finding:
    """The Python version."""
    return ok("Python", f"{platform.python_version()}, {platform.machine()}")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Usable cores, and instructions that matter for inference."""
    n_cores = len(os.sched_getaffinity(0))
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    found = [name for name in FEATURES if flags and name in flags[1].split()]
    detail = f"{n_cores} usable core{'s' if n_cores > 1 else ''}; {', '.join(found) or 'no known vector extension'}"
    if platform.machine() == "x86_64" and "avx2" not in found:
        return warning("processor", detail, "Without AVX2 inference is slow: use another machine.")
    return ok("processor", detail)


def check_memory(root: Path = Path("/")) -> Finding:
    """Memory that this process may use, within the limits of its cgroup."""
    meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE))
    total, available = (1024 * int(meminfo[name]) for name in ("MemTotal", "MemAvailable"))
    limit, used = _cgroup_memory(root / "sys/fs/cgroup")
    kind = ""
    if limit is not None and limit < total:
        total, available, kind = limit, min(available, limit - used), " (limit of the cgroup)"
    detail = f"{available / GIB:.1f} GiB available of {total / GIB:.1f} GiB{kind}"
    if available < LOW_MEMORY_BYTES:
        return warning("memory", detail, "Too little for a large backbone: end other programs, or raise the limit.")
    return ok("memory", detail)


def _cgroup_memory(folder: Path) -> tuple[int | None, int]:
    """Limit and use in bytes, of cgroup version 2 or 1; no limit if none is set."""
    names = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit_name, used_name in names:
        try:
            limit, used = (folder / limit_name).read_text().strip(), (folder / used_name).read_text().strip()
        except OSError:
            continue
        return (int(limit), int(used)) if limit.isdecimal() else (None, 0)
    return None, 0


def check_disk(store: Path) -> Finding:
    """Free space of the file system that has, or will have, the store."""
    folder = next(path for path in (store.absolute(), *store.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free for the store"
    advice = "Free some space; `caspl store gc` removes old versions."
    if free < NO_DISK_BYTES:
        return problem("disk", detail, advice)
    return warning("disk", detail, advice) if free < LOW_DISK_BYTES else ok("disk", detail)
