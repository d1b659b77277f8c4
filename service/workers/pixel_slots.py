"""Shared memory that carries pixels from one web process to the device process, in slots of one image each.

The memory is anonymous: it has no name that could be left behind, and goes with the last process that holds it. One
web process alone writes to it and says which slots are taken, so there are no locks, and the memory of a web process
that died goes with it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import OverloadedError

Pixels = NDArray[np.uint8]


def slot_memory(n_slots: int, image_size: int) -> int:
    """Open shared memory for so many images, [3, image_size, image_size] uint8 each; the caller closes the descriptor.

    Pages are taken when they are first written.
    """
    descriptor = os.memfd_create("caspl-pixels", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, n_slots * 3 * image_size**2)
    return descriptor


def slot_view(descriptor: int, n_slots: int, image_size: int, *, writable: bool) -> Pixels:
    """The memory behind a descriptor as [n_slots, 3, image_size, image_size]; needs the descriptor no more."""
    shape = (n_slots, 3, image_size, image_size)
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    memory = mmap.mmap(descriptor, n_slots * 3 * image_size**2, access=access)
    return np.frombuffer(memory, dtype=np.uint8).reshape(shape)


class Slots:
    """Which slots are free, and the way to fill one; lives on one event loop.

    Args:
        view: the memory, writable.
    """

    def __init__(self, view: Pixels) -> None:
        self._view = view
        # The one given back last goes out first: its pages are there and warm.
        self._free = list(range(len(view)))[::-1]

    @property
    def n_free(self) -> int:
        """Slots that hold no image of anybody."""
        return len(self._free)

    def fill(self, pixels: Sequence[Pixels]) -> list[int]:
        """Copy images into free slots, all of them or none; the slots are taken until `free` is called.

        Raises:
            OverloadedError: there are not as many.
        """
        if len(pixels) > len(self._free):
            raise OverloadedError(
                f"{len(self._view)} images of this process already wait; try again later.", retry_after_s=1.0
            )
        slots = self._free[len(self._free) - len(pixels) :]
        for slot, image in zip(slots, pixels, strict=True):
            self._view[slot] = image
        del self._free[len(self._free) - len(pixels) :]
        return slots

    def free(self, slots: Sequence[int]) -> None:
        """Take slots back whose answer is there."""
        self._free.extend(slots)
