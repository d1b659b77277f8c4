"""The same work on every core at the same time, as a service under load has it, in several ways that take turns."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TypeVar

import torch

from benchmarks.interleaved import Name, in_turn
from prompted_clip.threads import compute_alone

T = TypeVar("T")


class AllCores:
    """A thread for every core, each computing alone.

    Attributes:
        n: how many there are.
    """

    def __init__(self) -> None:
        self.n = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(self.n, initializer=compute_alone)

    def on_one(self, work: Callable[[], T]) -> T:
        """What some work gives on one of them."""
        return self._threads.submit(work).result()

    def on_each(self, work: Callable[[], object]) -> None:
        """Have every core do the same work once."""
        for done in [self._threads.submit(work) for _ in range(self.n)]:
            done.result()

    def images_per_s(
        self,
        turns: Mapping[Name, Callable[[], object]],
        n_images: int,
        *,
        budget_s: float,
        on_round: Callable[[int], None],
    ) -> tuple[dict[Name, float], int]:
        """Medians of ways that take turns, and the number of rounds.

        Args:
            turns: each has every core work, and has been run before.
            n_images: of one core in one turn.
            budget_s: see `in_turn`.
            on_round: likewise.
        """
        taken = in_turn(turns, budget_s=budget_s, on_round=on_round)
        rates = {name: self.n * n_images / median(times_s) for name, times_s in taken.items()}
        return rates, len(next(iter(taken.values())))
