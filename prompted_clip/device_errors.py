"""Out-of-memory errors, and devices that are not available or not supported by the installed torch."""

from collections.abc import Sequence
from typing import Final

import torch

from prompted_clip.errors import DeviceError

MEMORY_MARKS: Final = ("out of memory", "can't allocate memory", "alloc_failed", "allocation_failed")
"""In messages of the CUDA runtime, torch's CPU allocator, cuBLAS and cuDNN, which raise other errors than torch's."""
TEGRA: Final = ((5, 3), (6, 2), (7, 2), (8, 7))
"""Integrated GPUs, which do not run code for another compute capability."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that device or host memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(mark in text for mark in MEMORY_MARKS)


def resolve_device(device: str) -> str:
    """The device to run on; `auto` is CUDA if it is available, otherwise the CPU.

    Raises:
        DeviceError: CUDA was requested and is not available, or torch has no code for the GPU.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if not device.startswith("cuda"):
        return device
    if not has_cuda:
        msg = f"Device {device} was requested, but torch finds no CUDA device. Use device cpu."
        raise DeviceError(msg)
    if (reason := unsupported_gpu(device)) is not None:
        raise DeviceError(reason)
    return device


def unsupported_gpu(device: str) -> str | None:
    """Why the installed torch cannot run on a CUDA device and what to do; None if it can."""
    capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    if _runs_on(capability, architectures):
        return None
    major, minor = capability
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, for which the installed torch "
        f"{torch.__version__} has no code (it has {', '.join(architectures)}). Install a torch build with "
        f"sm_{major}{minor}: of an older CUDA version for an older GPU, NVIDIA's for a Jetson. Or use device cpu."
    )


def _runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Machine code (`sm_86`) runs on the same major version from its minor one on; PTX (`compute_80`) on all later."""
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        built_for = divmod(int(number.rstrip("af")), 10)
        is_portable = number.isdecimal()  # `sm_90a` runs on 9.0 only
        is_same_major = built_for[0] == capability[0] and capability not in TEGRA
        is_older = built_for <= capability and (kind == "compute" or is_same_major)
        if built_for == capability or (is_portable and is_older):
            return True
    return False
