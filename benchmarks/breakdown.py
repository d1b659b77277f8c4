"""Where the time of a forward goes, by kind of operator, as torch's own profiler sees it."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "linear layers, activations worked in": ("_linear_pointwise", "addmm", "::mm", "gemm", "cutlass", "nvjet"),
    "attention": ("scaled_dot_product", "flash", "fmha", "softmax", "bmm"),
    "norms": ("layer_norm",),
}
"""Parts of operators' and kernels' names; the first kind that fits has it."""
REST = "copies, sums and the rest"
N_RUNS = 3


def shares(run: Callable[[], object]) -> dict[str, float]:
    """The part of the time that every kind of operator takes, largest first; they add up to 1.

    Args:
        run: one forward, on the calling thread or on a CUDA device.
    """
    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as seen:
        for _ in range(N_RUNS):
            run()
    taken_us: defaultdict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        taken_us[kind_of(event.key)] += event.self_device_time_total or event.self_cpu_time_total
    whole_us = sum(taken_us.values())
    return {kind: taken_us[kind] / whole_us for kind in sorted(taken_us, key=lambda kind: -taken_us[kind])}


def kind_of(name: str) -> str:
    """What an operator or kernel of this name is for."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), REST)
