"""The image tower on several CPU cores: each takes rows of its own, instead of all sharing every product.

Rows do not depend on each other, so cores that work apart need not wait for each other after each of a tower's hundred
steps; where something else runs beside, that wait is for the slowest. One image alone, or too few for all cores to have
the same share, is better off with torch's own threads.

Legend: B rows, C/H/W image in pixels, E joint width.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from prompted_clip.prompts import PromptGrid

LEAST_SHARE: Final = 0.8
"""Of all cores' time that must go into rows; the rest is spent waiting for the core with a row more."""

Tower = Callable[[Tensor, PromptGrid | None], Tensor]


class PerCoreTower:
    """A tower whose batches are shared out among cores.

    Args:
        tower: computes the same for each row whatever the others hold; may be called by several threads at once.
        n_cores: threads, at least 2; each computes on one core.
    """

    def __init__(self, tower: Tower, n_cores: int) -> None:
        self._tower = tower
        self._n_cores = n_cores
        self._threads = ThreadPoolExecutor(n_cores, "core", initializer=compute_alone)

    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """The tower's embeddings [B, E]; raises what it raises."""
        n_rows = len(pixels_BCHW)
        if not is_worth_sharing(n_rows, self._n_cores):
            return self._tower(pixels_BCHW, grid)
        ends = [n_rows * core // self._n_cores for core in range(self._n_cores + 1)]
        parts = [slice(*bounds) for bounds in pairwise(ends)]
        own = [grid.rows(part) if grid is not None else None for part in parts]
        running = [
            self._threads.submit(self._tower, pixels_BCHW[part], prompts)
            for part, prompts in zip(parts, own, strict=True)
        ]
        return torch.cat([part.result() for part in running])


def compute_alone() -> None:
    """Have the calling thread compute on one core from now on, without a team of its own.

    Threads that begin later take the number over, unless they set their own.
    """
    torch.set_num_threads(1)


def is_worth_sharing(n_rows: int, n_cores: int) -> bool:
    """Whether whole rows keep the cores busy enough."""
    n_most = -(-n_rows // n_cores)
    return n_rows >= n_cores and n_rows >= LEAST_SHARE * n_cores * n_most
