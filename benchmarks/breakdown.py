"""Where the time of a forward goes, by kind of operator, as torch's own profiler sees it."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha", "softmax", "bmm"),
    "linear layers, activations worked in": ("_linear_pointwise", "addmm", "::mm", "gemm", "cutlass", "nvjet"),
    "norms": ("layer_norm",),
}
"""Parts of operators' and kernels' names; the first kind that fits has it: attention's kernels name products, too."""
REST = "copies, sums and the rest"
N_RUNS = 3


def shares(run: Callable[[], object], device: str) -> dict[str, float]:
    """The part of the time that every kind of operator takes, largest first; they add up to 1.

    Args:
        run: one forward.
        device: "cpu" or "cuda", on which it runs. On a CPU the calling thread is looked at, on CUDA the kernels alone.
    """
    run()
    is_cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(N_RUNS):
            run()
        if is_cuda:
            torch.cuda.synchronize()
    taken_us: defaultdict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        # An operator that launched a kernel is told the kernel's time too; only the kernel's own event counts.
        is_counted = not is_cuda or event.device_type.name == "CUDA"
        taken_us[kind_of(event.key)] += is_counted * (
            event.self_device_time_total if is_cuda else event.self_cpu_time_total
        )
    whole_us = sum(taken_us.values())
    return {kind: taken_us[kind] / whole_us for kind in sorted(taken_us, key=lambda kind: -taken_us[kind])}


def kind_of(name: str) -> str:
    """What an operator or kernel of this name is for."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), REST)
