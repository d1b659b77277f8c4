"""Rows of one width in one device tensor, lent out in any order.

Whoever needs rows takes any that are free and reads them by their numbers, so nothing is ever moved together and no
room is lost between entries of different size. Row 0 is zero, is never lent, and stands wherever there is nothing.

Legend: N rows, W width.
"""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompted_clip.transfers import sent

Rows = NDArray[np.int64]
"""Row numbers, on the host."""


class Arena:
    """A fixed number of rows, and which of them are free; not safe for several threads at once.

    Args:
        n_rows: how many can be lent.
        width: numbers in a row.
        dtype: their type.
        device: where they are; the memory is taken with the first write, and never grows.
    """

    def __init__(self, n_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n_rows = n_rows
        self._width = width
        self._dtype = dtype
        self._device = device
        self._free = np.arange(n_rows, 0, -1)
        self._n_free = n_rows

    @property
    def n_free(self) -> int:
        """Rows that `take` can still give."""
        return self._n_free

    @property
    def free(self) -> Rows:
        """The numbers of those rows."""
        return self._free[: self._n_free].copy()

    def take(self, n_rows: int) -> Rows:
        """Numbers of rows that nobody else has.

        Raises:
            ValueError: there are not so many.
        """
        if n_rows > self._n_free:
            msg = f"{n_rows} rows were asked for and {self._n_free} of {self.n_rows} are free."
            raise ValueError(msg)
        self._n_free -= n_rows
        return self._free[self._n_free : self._n_free + n_rows].copy()

    def give_back(self, rows: Rows) -> None:
        """Take rows back that `take` gave."""
        self._free[self._n_free : self._n_free + len(rows)] = rows
        self._n_free += len(rows)

    @torch.inference_mode()
    def write(self, rows: Rows, content_NW: Tensor) -> None:
        """Put a host tensor into rows that were taken; from pinned memory the copy runs on the current stream."""
        self._storage.index_copy_(0, sent(rows, self._device), content_NW.to(self._device, non_blocking=True))

    def read(self, index: Tensor) -> Tensor:
        """The rows of an index of any shape, on the device: its shape and W behind it."""
        return self._storage.index_select(0, index.reshape(-1)).view(*index.shape, self._width)

    @cached_property
    def _storage(self) -> Tensor:
        storage = torch.empty(self.n_rows + 1, self._width, dtype=self._dtype, device=self._device)
        storage[0] = 0
        return storage
