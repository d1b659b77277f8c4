"""Anonymous shared memory that carries pixels from one web process to the device process, in slots of one image."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import OverloadedError

Pixels = NDArray[np.uint8]


def slot_memory(n_slots: int, image_size: int) -> int:
    """Create memory for images, [3, image_size, image_size] uint8 each; the caller closes its descriptor."""
    descriptor = os.memfd_create("caspl-pixels", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, n_slots * 3 * image_size**2)
    return descriptor


def slot_view(descriptor: int, n_slots: int, image_size: int, *, writable: bool) -> Pixels:
    """Map the memory as [n_slots, 3, image_size, image_size]; the descriptor may be closed afterwards."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    memory = mmap.mmap(descriptor, n_slots * 3 * image_size**2, access=access)
    return np.frombuffer(memory, dtype=np.uint8).reshape(n_slots, 3, image_size, image_size)


class PixelSlots:
    """Allocates the slots of a web process, the only writer, so without locks; lives on one event loop.

    Args:
        view: the memory, writable.
    """

    def __init__(self, view: Pixels) -> None:
        self._view = view
        self._free = list(range(len(view)))[::-1]  # LIFO: the pages of the slot freed last are warm

    @property
    def n_free(self) -> int:
        """Slots without an image."""
        return len(self._free)

    def fill(self, pixels: Sequence[Pixels]) -> list[int]:
        """Copy images into free slots, all of them or none, and return the slots, allocated until `free`.

        Raises:
            OverloadedError: too few are free.
        """
        n_left = len(self._free) - len(pixels)
        if n_left < 0:
            raise OverloadedError(
                f"{len(self._view)} images of this process already wait; try again later.", retry_after_s=1.0
            )
        slots = self._free[n_left:]
        for slot, image in zip(slots, pixels, strict=True):
            self._view[slot] = image
        del self._free[n_left:]
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Return slots whose answer has arrived."""
        self._free.extend(slots)
