"""Memory of oneDNN's cache of kernels, and the CPU time without it, for batches of changing size.

    python -m benchmarks.kernel_cache

Each variant runs in processes of its own, in turn. Prints the memory in use that the batch sizes 1 to 32 add when each
has run once, what another round of them adds, and the CPU time of batches of random size.
"""

import ctypes
import json
import os
import random
import subprocess
import sys
import time

import numpy as np

ARCH, MAX_ROWS, N_PROMPTS, N_BATCHES, N_ROUNDS = "demo-student", 32, 4, 60, 5
MEMORY_FIELDS = [
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
]
VARIANTS = {"1,024 entries": ("packed", "1024"), "64 entries": ("packed", "64"), "plain layers": ("plain", "1024")}


class MemoryInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in MEMORY_FIELDS]


def in_use_mib() -> float:
    """Allocated memory, without blocks that are free."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MemoryInfo
    info = libc.mallinfo2()
    return float(info.uordblks + info.hblkhd) / 2**20


def measure(form: str) -> list[float]:
    """MiB added by every batch size, MiB added by all of them again, and milliseconds of CPU time per image."""
    import torch  # noqa: PLC0415  after the environment is set

    from prompted_clip.backbone import load_backbone  # noqa: PLC0415
    from prompted_clip.fused_tower import FusedImageTower  # noqa: PLC0415
    from prompted_clip.prompts import PromptGrid  # noqa: PLC0415

    torch.set_num_threads(1)
    backbone = load_backbone(ARCH, device="cpu", dtype=torch.float32)
    tower = FusedImageTower(backbone, packed=form == "packed")
    width, side = backbone.clip.visual.positional_embedding.shape[1], backbone.image_size

    def run(n_rows: int) -> None:
        tokens, depths = torch.zeros(n_rows, 3, N_PROMPTS, width), torch.full((n_rows, N_PROMPTS), 3)
        tower(torch.zeros((n_rows, 3, side, side), dtype=torch.uint8), PromptGrid(tokens, depths, 3))

    added = []
    run(MAX_ROWS)
    for _ in range(2):
        before = in_use_mib()
        for n_rows in range(1, MAX_ROWS + 1):
            run(n_rows)
        added.append(in_use_mib() - before)
    sizes = random.Random(0).choices(range(1, MAX_ROWS + 1), k=N_BATCHES)  # noqa: S311  sizes, not secrets
    began_s = time.process_time()
    for n_rows in sizes:
        run(n_rows)
    return [*added, 1000 * (time.process_time() - began_s) / sum(sizes)]


def main() -> None:
    """Measure one variant, or all of them in turn."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure(sys.argv[1])))
        return
    rounds: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for _ in range(N_ROUNDS):
        for name, (form, capacity) in VARIANTS.items():
            limits = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": capacity, "LRU_CACHE_CAPACITY": capacity}
            command = [sys.executable, "-m", "benchmarks.kernel_cache", form]
            done = subprocess.run(command, env=os.environ | limits, stdout=subprocess.PIPE, check=True)  # noqa: S603
            rounds[name].append(json.loads(done.stdout))
    for name, values in rounds.items():
        first, second, cpu_ms = np.median(values, axis=0)
        sys.stdout.write(f"{name}: {first:.0f} MiB, again {second:.1f} MiB, {cpu_ms:.2f} ms of CPU time per image\n")


if __name__ == "__main__":
    main()
