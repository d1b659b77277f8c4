"""Faults of the device: their classification, and a smaller batch limit after repeated out-of-memory errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import torch

LOST_MARKS: Final = (
    "illegal memory access",
    "launch failure",
    "launch timed out",
    "illegal instruction",
    "invalid program counter",
    "global/shared address space",
    "misaligned address",
    "hardware stack error",
    "uncorrectable ecc",
    "device-side assert",
)
"""CUDA errors after which the device is unusable until the process restarts."""
MEMORY_MARKS: Final = ("out of memory", "can't allocate memory", "alloc_failed")
"""Of the CUDA runtime, torch's CPU allocator and cuBLAS, which do not raise `torch.OutOfMemoryError`."""

N_ERRORS: Final = 3
WITHIN_S: Final = 60.0
REDUCED_FOR_S: Final = 300.0


class Fault(Enum):
    """The kinds of device fault."""

    LOST = auto()
    OUT_OF_MEMORY = auto()
    NONE = auto()


def fault_of(error: Exception) -> Fault:
    """Classify an exception of a forward."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Fault.OUT_OF_MEMORY
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    if any(mark in text for mark in LOST_MARKS):
        return Fault.LOST
    return Fault.OUT_OF_MEMORY if any(mark in text for mark in MEMORY_MARKS) else Fault.NONE


class BatchLimit:
    """Three batches out of memory within 60 s halve the batch size for five minutes; three more halve it again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._errors_s: list[float] = []
        self._max_rows = 0
        self._until_s = 0.0

    @property
    def max_rows(self) -> int:
        """The reduced batch size; 0 without a reduction."""
        return self._max_rows if self._clock() < self._until_s else 0

    def out_of_memory(self, n_rows: int) -> None:
        """Record that a batch of `n_rows` ran out of memory."""
        now_s = self._clock()
        self._errors_s = [*(error_s for error_s in self._errors_s if now_s - error_s < WITHIN_S), now_s]
        if len(self._errors_s) >= N_ERRORS:
            self._max_rows, self._until_s, self._errors_s = max(1, n_rows // 2), now_s + REDUCED_FOR_S, []
