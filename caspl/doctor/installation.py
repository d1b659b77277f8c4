"""Checks of the installed packages, torch and its devices, and the cache of weights.

torch and open_clip are imported in a process of their own: a broken installation may end it.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Final

from caspl.doctor.finding import Finding, ok, problem, warning

PROJECT: Final = "caspl-serve"
TIMEOUT_S: Final = 120
INSTALL: Final = f'pip install "{PROJECT}[serve]"'
PROBE: Final = """
import json
import torch
has_cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if has_cuda else []
facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
facts["devices"] = [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in devices]
print(json.dumps(facts), flush=True)
import huggingface_hub, open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
tags = []
for arch, tag in open_clip.list_pretrained():
    hub = (open_clip.get_pretrained_cfg(arch, tag) or {}).get("hf_hub", "")
    hub = "/".join(hub.split("/")[:2])
    names = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME) if hub else ()
    if any(isinstance(huggingface_hub.try_to_load_from_cache(hub, name), str) for name in names):
        tags.append([arch, tag])
print(json.dumps({"tags": tags}))
"""


@dataclass(frozen=True)
class Probe:
    """Facts about torch and open_clip, from another process.

    Attributes:
        facts: `torch`, `cuda`, `threads`, `devices` and `tags`, as far as they could be found.
        error: the last line of the error, if one was raised.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def check_package() -> Finding:
    """The version of this package."""
    return ok("caspl", f"{metadata(PROJECT)['Version']} in {Path(__file__).parents[2]}")


def check_extras() -> Finding:
    """Which extras are installed completely."""
    missing: dict[str, list[str]] = {}
    for requirement in requires(PROJECT) or []:
        name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
        if (extra := re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)) and name != PROJECT:
            missing.setdefault(extra[1], []).extend([] if _is_installed(name) else [name])
    installed = [extra for extra, packages in missing.items() if not packages]
    absent = [f"{extra} ({', '.join(packages)})" for extra, packages in missing.items() if packages]
    detail = f"installed: {', '.join(installed) or 'none'}" + (f"; missing: {'; '.join(absent)}" if absent else "")
    if missing.get("serve"):
        return warning("extras", detail, f"The clients work; to serve or train: {INSTALL}")
    return ok("extras", detail)


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def probe(code: str = PROBE) -> Probe:
    """Import torch and open_clip in another process."""
    command = [sys.executable, "-P", "-c", code]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Probe(error=f"no result within {TIMEOUT_S} s")
    facts: dict[str, Any] = {}
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            facts |= json.loads(line)
    if run.returncode == 0:
        return Probe(facts)
    return Probe(facts, (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1])


def check_torch(found: Probe, driver: Path = Path("/proc/driver/nvidia/version")) -> Finding:
    """Whether torch can be imported, and the devices that it can use."""
    if "torch" not in found.facts:
        if not _is_installed("torch"):
            return warning("torch", "not installed", f"The clients work; to serve or train: {INSTALL}")
        return problem("torch", f"cannot be imported: {found.error}", f"{INSTALL} --force-reinstall")
    facts = found.facts
    detail = f"{facts['torch']}, {facts['threads']} threads"
    if facts["devices"]:
        return ok("torch", f"{detail}, CUDA {facts['cuda']}: {'; '.join(facts['devices'])}")
    if driver.exists():
        version_line = driver.read_text(encoding="utf-8").splitlines()[0]
        built_for = f"CUDA {facts['cuda']}" if facts["cuda"] else "the CPU only"
        detail = f"{detail}, built for {built_for}, cannot use the GPU ({version_line})"
        return problem("torch", detail, "Install a torch for this driver (pytorch.org), or a newer driver.")
    return ok("torch", f"{detail}, no NVIDIA driver: the CPU is used")


def check_weights(found: Probe, backbone: str, pretrained: str | None) -> Finding:
    """Which weights are in the cache, and whether the configured ones are."""
    if "tags" not in found.facts:
        return warning("weights", f"open_clip cannot be imported: {found.error}", INSTALL)
    tags = found.facts["tags"]
    names = ", ".join(f"{arch} ({tag})" for arch, tag in tags)
    detail = f"in the cache: {names}" if names else "none in the cache"
    if pretrained is None or [backbone, pretrained] in tags or pretrained.startswith(("local-dir:", "hf-hub:")):
        return ok("weights", detail)
    if Path(pretrained).suffix in {".safetensors", ".pt", ".bin"}:
        if Path(pretrained).is_file():
            return ok("weights", f"{pretrained}; {detail}")
        return problem("weights", f"no such file: {pretrained}", "Set CASPL_PRETRAINED to a file or an open_clip tag.")
    advice = "The first start downloads them; without a network see docs/offline.md."
    return warning("weights", f"{backbone} ({pretrained}) is not in the cache; {detail}", advice)
