"""The batches that runners have: which of them run, and when the next runner is free.

Knows batches by the tasks that wait for them, and seconds. Does not know rows, queues or what a runner is. Runners take
batches in the order in which they were handed over; one that is handed over while all are busy begins when the first of
them is back.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class Turn:
    """One batch's.

    Args:
        n_rows: in it.
        expected_s: how long it is expected to run.
        began_s: since when it has run; None while all runners are busy.
        has_company: whether another one ran at the same time, if only for a moment.
        ran_s: for how long it has run in the end.
    """

    n_rows: int
    expected_s: float
    began_s: float | None
    has_company: bool
    ran_s: float = 0.0


class RunningBatches:
    """Batches that were handed over and are not yet back.

    Args:
        n_runners: batches that run at once.
    """

    def __init__(self, n_runners: int) -> None:
        self._n_runners = n_runners
        self._turns: dict[Hashable, Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def n_free(self) -> int:
        """Runners without a batch: what is handed over to them begins at once."""
        return max(0, self._n_runners - len(self._turns))

    @property
    def has_one_ahead(self) -> bool:
        """Whether a batch waits for a runner already."""
        return len(self._turns) > self._n_runners

    @property
    def n_rows(self) -> int:
        """Rows in all batches that are not yet back."""
        return sum(turn.n_rows for turn in self._turns.values())

    def hand_over(self, key: Hashable, n_rows: int, expected_s: float, now_s: float) -> None:
        """Note a batch, and how long it is expected to run."""
        turn = Turn(n_rows, expected_s, now_s if self.n_free else None, has_company=bool(self._turns))
        for other in self._turns.values():
            other.has_company = True
        self._turns[key] = turn

    def come_back(self, key: Hashable, now_s: float) -> Turn:
        """Note that a batch is back; its runner goes on with the next one."""
        turn = self._turns.pop(key)
        following = next((turn for turn in self._turns.values() if turn.began_s is None), None)
        if following is not None:
            following.began_s = now_s
        turn.ran_s = 0.0 if turn.began_s is None else now_s - turn.began_s
        return turn

    def rests_s(self, now_s: float) -> list[float]:
        """Seconds until each runner is free of what it has, the soonest first; overdue batches count as done."""
        turns = self._turns.values()
        rests_s = [max(0.0, turn.expected_s - (now_s - turn.began_s)) for turn in turns if turn.began_s is not None]
        rests_s += [0.0] * self.n_free
        heapq.heapify(rests_s)
        for turn in turns:
            if turn.began_s is None:
                heapq.heapreplace(rests_s, rests_s[0] + turn.expected_s)
        return sorted(rests_s)
