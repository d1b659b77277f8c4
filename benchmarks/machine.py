"""What a measurement ran on and with: the facts that belong beside every number."""

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("caspl-serve", "torch", "open_clip_torch", "pillow", "numpy", "fastapi", "uvicorn")
FAST_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
MIB = 1024 * 1024


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, device and system; no names of machines or people."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "n_cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in FAST_INSTRUCTIONS if name in _flags()],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        facts["device"] = f"{card.name}, {card.total_memory / 1024**3:.0f} GiB"
        facts["cuda"] = str(torch.version.cuda)
    return facts


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of what is measured, as installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def today() -> str:
    """The date in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def in_words(facts: dict[str, Any]) -> str:
    """One line for a table's foot."""
    instructions = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
    where = f"{facts['device']}, " if "device" in facts else ""
    return f"{where}{facts['n_cores']} cores of {facts['processor']}{instructions}, {facts['memory_gib']} GiB"


def foot(command: str, found: Mapping[str, str], device: str = "cpu") -> str:
    """What stands under a table: date, machine, versions, and the command that makes it again."""
    software = ", ".join(f"{name} {number}" for name, number in found.items())
    return f"{today()}; {in_words(machine(device))}; {software}. Command: `{command}`."


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is really in use, in bytes; this one's by default. Linux only."""
    fields = Path(f"/proc/{pid or 'self'}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor() -> str:
    text = _cpuinfo()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def _flags() -> set[str]:
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return set(match[1].split()) if match else set()


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
