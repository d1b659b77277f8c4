"""How long a batch takes: measured at the start, kept current by what is seen, used to say who would be late.

Knows numbers of rows, costs and seconds. Does not know lanes, queues or what a row is; lanes differ by a few prompt
tokens, so one curve stands for all of them.

The curve has a number for every size: devices take rows in twos or fours and have steps. Every batch moves its own size
towards what it took, by a part of the difference, and the other sizes the less, the further away they are: small ones
hardly, since their steps are their own, large ones by much, since what slows one batch down slows down all. One that
hangs counts as twice the expected time at most. Then all sizes are kept plausible beside the one that was seen: more
rows take no less time, and little more than in proportion. A wrong estimate therefore mends from any side on which
batches still run.

Costly rows have a second number, seconds per unit of cost on top of what every row takes; batches with a cost teach
that one only.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

Row = TypeVar("Row")

SMOOTHING: Final = 0.3
"""How much of a difference one batch mends."""
OUTLIER: Final = 2.0
"""A batch counts as at most this many times slower, or quicker, than expected."""
FEW: Final = 8
"""Sizes below have steps of their own, of up to twice the time; larger ones move together."""
FALL_OFF: Final = 8
"""A small size learns the ratio of the two, smaller by larger, to this power of what another one learns."""
STEP: Final = 2.0
"""How much more than in proportion a larger batch may take: one row more than a device takes at once doubles it."""


class BatchTimes:
    """Seconds of batches, by rows and cost; nothing is known at first, and then every answer is 0.

    Args:
        max_rows: of the largest batch.
        n_padded: how many rows really run for so many.
    """

    def __init__(self, max_rows: int, n_padded: Callable[[int], int] = lambda n_rows: n_rows) -> None:
        self._max_rows = max_rows
        steps = (size << i for i in range(max_rows.bit_length()) for size in (1, 3))
        self._padded = [0, *(min(n_padded(n_rows), max_rows) for n_rows in range(1, max_rows + 1))]
        self.sizes: Final = tuple(sorted({*(self._padded[size] for size in steps if size < max_rows), max_rows}))
        """Those that are worth measuring."""
        self._curve = [0.0] * (max_rows + 1)  # by rows that really run
        self._s_per_cost = 0.0
        self._table = [0.0] * (max_rows + 1)  # by rows, whatever is added to them

    def seconds(self, n_rows: int, cost: int = 0) -> float:
        """What so many rows take, in full batches and a last smaller one if one does not hold them."""
        if n_rows <= self._max_rows:
            return self._table[n_rows] + cost * self._s_per_cost
        n_full, n_left = divmod(n_rows, self._max_rows)
        return n_full * self._table[-1] + self._table[n_left] + cost * self._s_per_cost

    def set_measured(self, measured: Mapping[int, float]) -> None:
        """Take over seconds by size: straight lines in between, in proportion to the nearest one outside."""
        if not measured:
            return
        measured = {self._padded[size]: seconds for size, seconds in sorted(measured.items())}
        known = sorted(measured)
        curve = [0.0]
        for n_rows in range(1, self._max_rows + 1):
            low = known[max(bisect_right(known, n_rows) - 1, 0)]
            high = known[min(bisect_left(known, n_rows), len(known) - 1)]
            if low < n_rows < high:
                part = (n_rows - low) / (high - low)
                curve.append(measured[low] + part * (measured[high] - measured[low]))
            else:
                curve.append(measured[low] * n_rows / low)
        self._set(curve)

    def observe(self, n_rows: int, cost: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        expected_s = self.seconds(n_rows)
        if cost:
            self._s_per_cost = _mended(self._s_per_cost, max(0.0, seconds - expected_s) / cost)
        elif not expected_s:
            self.set_measured({n_rows: seconds})
        else:
            self._learn(self._padded[n_rows], _mended(expected_s, seconds))

    def _learn(self, n_seen: int, mended_s: float) -> None:
        """Set one size, have the others follow, and keep them plausible beside it."""
        factor = mended_s / self._curve[n_seen]
        curve = [0.0]
        for n_rows in range(1, self._max_rows + 1):
            ratio = n_rows / n_seen
            nearness = min(ratio, 1 / ratio) ** (FALL_OFF if min(n_rows, n_seen) < FEW else 1)
            follows_s = self._curve[n_rows] * factor**nearness
            if n_rows == n_seen:
                curve.append(mended_s)
            elif n_rows < n_seen:
                curve.append(min(max(follows_s, mended_s * ratio / STEP), mended_s))
            else:
                curve.append(min(max(follows_s, mended_s), mended_s * ratio * STEP))
        self._set(curve)

    def _set(self, curve: list[float]) -> None:
        self._curve = curve
        self._table = [curve[n_padded] for n_padded in self._padded]


def _mended(known_s: float, seen_s: float) -> float:
    """An estimate after one more observation; the first one is believed."""
    if not known_s:
        return seen_s
    return known_s + SMOOTHING * (min(max(seen_s, known_s / OUTLIER), known_s * OUTLIER) - known_s)


async def calibrate(
    times: BatchTimes,
    run: Callable[[Sequence[Row]], Awaitable[Sequence[object]]],
    row: Row,
    *,
    n_runners: int = 1,
    budget_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> Mapping[int, float]:
    """Measure a few batches before there is any traffic; the queue must still be empty.

    Every size runs twice and the quicker time counts: the first may include what is done only once. The sizes grow
    until the next one would not fit into the budget; one size is always measured.

    Args:
        times: told the result.
        run: the batcher's runner.
        row: any row without a cost.
        n_runners: batches that run side by side; all runners are kept busy, as a crowd would.
        budget_s: about how long it may take.
        clock: monotonic seconds.

    Returns:
        Seconds by size. Sizes from the first one that fails are missing.
    """
    began_s = clock()
    measured: dict[int, float] = {}
    for size in times.sizes:
        taken_s = []
        for _ in range(2):
            started_s = clock()
            batches = await asyncio.gather(*(run([row] * size) for _ in range(n_runners)))
            taken_s.append(clock() - started_s)
            if any(isinstance(answer, Exception) for answers in batches for answer in answers):
                break
        else:
            measured[size] = min(taken_s)
            if clock() - began_s + 4 * measured[size] <= budget_s:
                continue
        break
    times.set_measured(measured)
    return measured
