"""How long a batch takes: measured at the start, kept current by what is seen, used to say who would be late.

Knows numbers of rows, costs and seconds. Does not know lanes, queues or what a row is; lanes differ by a few prompt
tokens, so one curve stands for all of them.

The curve has a knot at 1, 2, 4, ... rows and is straight in between. Every batch moves the two knots around its size
towards what it took, by a part of the difference, and a single batch that hangs counts as twice the expected time at
most. The knots further away follow as far as they must to stay plausible: twice the rows take no less time, and little
more than twice the time. A wrong estimate therefore mends from any side on which batches still run.

Costly rows have a second number, seconds per unit of cost on top of what every row takes; batches with a cost teach
that one only.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

Row = TypeVar("Row")

SMOOTHING: Final = 0.3
"""How much of a difference one batch mends."""
OUTLIER: Final = 2.0
"""A batch counts as at most this many times slower, or quicker, than expected."""
SLACK: Final = 1.25
"""How much more than in proportion a larger batch may take."""


class BatchTimes:
    """Seconds of batches, by rows and cost; nothing is known at first, and then every answer is 0.

    Args:
        max_rows: of the largest batch.
        n_padded: how many rows really run for so many.
    """

    def __init__(self, max_rows: int, n_padded: Callable[[int], int] = lambda n_rows: n_rows) -> None:
        self._max_rows = max_rows
        self._n_padded = n_padded
        self.sizes: Final = tuple(sorted({*(1 << i for i in range(max_rows.bit_length())), max_rows}))
        self._knots: list[float] = []
        self._s_per_cost = 0.0
        self._table = [0.0] * (max_rows + 1)  # the curve, drawn out: it is asked for several times a row

    def seconds(self, n_rows: int, cost: int = 0) -> float:
        """What so many rows take, in full batches and a last smaller one if one does not hold them."""
        if n_rows <= self._max_rows:
            return self._table[n_rows] + cost * self._s_per_cost
        n_full, n_left = divmod(n_rows, self._max_rows)
        return n_full * self._table[-1] + self._table[n_left] + cost * self._s_per_cost

    def set_measured(self, measured: Mapping[int, float]) -> None:
        """Take over seconds by size; one that was not measured is reckoned in proportion to its neighbour."""
        if not measured:
            return
        known = sorted(measured)
        nearest = [known[min(bisect_left(known, size), len(known) - 1)] for size in self.sizes]
        self._knots = [measured[near] * size / near for size, near in zip(self.sizes, nearest, strict=True)]
        self._draw()

    def observe(self, n_rows: int, cost: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        expected_s = self.seconds(n_rows)
        if cost:
            self._s_per_cost = _mended(self._s_per_cost, max(0.0, seconds - expected_s) / cost)
        elif not expected_s:
            self.set_measured({n_rows: seconds})
        else:
            low, high = self._around(min(self._n_padded(n_rows), self._max_rows))
            factor = _mended(expected_s, seconds) / expected_s
            for at in {low, high}:
                self._knots[at] *= factor
            self._keep_plausible(low, high)
            self._draw()

    def _draw(self) -> None:
        """Make the table from the knots."""
        for n_rows in range(1, self._max_rows + 1):
            n_padded = min(self._n_padded(n_rows), self._max_rows)
            low, high = self._around(n_padded)
            part = (n_padded - self.sizes[low]) / (self.sizes[high] - self.sizes[low]) if low < high else 0.0
            self._table[n_rows] = self._knots[low] + part * (self._knots[high] - self._knots[low])

    def _around(self, n_rows: int) -> tuple[int, int]:
        """The knots on both sides of a size; twice the same where it has its own."""
        high = bisect_left(self.sizes, n_rows)
        return (high, high) if n_rows == self.sizes[high] else (high - 1, high)

    def _keep_plausible(self, low: int, high: int) -> None:
        """Make the knots below `low` and above `high` agree with what those two have learned."""
        for at in range(high + 1, len(self._knots)):
            before = self._knots[at - 1]
            most = SLACK * before * self.sizes[at] / self.sizes[at - 1]
            self._knots[at] = min(max(self._knots[at], before), most)
        for at in reversed(range(low)):
            after = self._knots[at + 1]
            least = after * self.sizes[at] / self.sizes[at + 1] / SLACK
            self._knots[at] = max(min(self._knots[at], after), least)


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
            answers = await run([row] * size)
            taken_s.append(clock() - started_s)
            if any(isinstance(answer, Exception) for answer in answers):
                break
        else:
            measured[size] = min(taken_s)
            if clock() - began_s + 4 * measured[size] <= budget_s:
                continue
        break
    times.set_measured(measured)
    return measured
