"""Anonymous shared memory for pixels from one web process to the device process, one slot per image."""

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
    """The slots of one web process. It is the only writer, so no locks are needed; `free` is a LIFO."""

    def __init__(self, view: Pixels) -> None:
        self._view = view
        self.free = list(range(len(view)))[::-1]

    def fill(self, pixels: Sequence[Pixels]) -> list[int]:
        """Copy images into free slots, which stay in use until their numbers are put back into `free`.

        Raises:
            OverloadedError: too few free slots.
        """
        if len(pixels) > len(self.free):
            raise OverloadedError(
                f"Server overloaded: all {len(self._view)} image slots of this process are in use. Retry later.",
                retry_after_s=1.0,
            )
        slots = [self.free.pop() for _ in pixels]
        for slot, image in zip(slots, pixels, strict=True):
            self._view[slot] = image
        return slots
