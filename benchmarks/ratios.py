"""Alternatives timed in turn (A B C A B C ...) on one machine, so that other load meets all of them.

A ratio is taken within each round and reported as the median over the rounds with its quartiles.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MIN_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `n` values."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))


def in_turn(ways: Mapping[str, Callable[[], object]], *, budget_s: float) -> dict[str, list[float]]:
    """Run every way once per round, at least three rounds and until the time is used up.

    Args:
        ways: by name; each does its whole work in one call.
        budget_s: no round starts that is expected to end later.

    Returns:
        Seconds of each way's turns, by round.
    """
    taken_s: dict[str, list[float]] = {name: [] for name in ways}
    began_s = time.perf_counter()
    n_rounds = 0
    while n_rounds < MIN_ROUNDS or (time.perf_counter() - began_s) * (n_rounds + 1) / n_rounds <= budget_s:
        for name, work in ways.items():
            started_s = time.perf_counter()
            work()
            taken_s[name].append(time.perf_counter() - started_s)
        n_rounds += 1
    return taken_s


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """`above / below`, round by round."""
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])
