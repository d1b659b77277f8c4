"""Facts about the machine, the code and the installed versions, for every result."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("caspl-serve", "torch", "open_clip_torch", "pillow", "fastapi", "uvicorn", "openvino")
FAST_INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_tile"),
    *("asimd", "bf16", "sve"),
)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory and device; no host or user names."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    facts: dict[str, Any] = {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "n_cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in FAST_INSTRUCTIONS if name in present],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
    }
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415  slow to load, and this module is read without it

        card = torch.cuda.get_device_properties(device)
        facts["device"] = f"{card.name}, {card.total_memory / 1024**3:.0f} GiB, CUDA {torch.version.cuda}"
    return facts


def in_words(facts: Mapping[str, Any]) -> str:
    """The same as a phrase."""
    instructions = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
    device = f"{facts['device']}, " if "device" in facts else ""
    return f"{device}{facts['n_cores']} cores of {facts['processor']}{instructions}, {facts['memory_gib']} GiB"


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter for speed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Short hash of the checkout's commit, with `+changes` if files other than results differ; `unknown` elsewhere."""
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607

    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!docs/results")
        return git("rev-parse", "--short=7", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def today() -> str:
    """UTC date, ISO 8601."""
    return time.strftime("%Y-%m-%d", time.gmtime())
