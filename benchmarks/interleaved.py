"""Several ways of doing the same work, timed in turn: A B C A B C ..., so that other load on the machine meets all.

A ratio is taken inside each round, where its two times lie next to each other, and is given as the median over rounds
with its quartiles.
"""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

FEWEST_ROUNDS = 3

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Ratio:
    """A ratio with its spread.

    Attributes:
        value: median.
        low: lower quartile.
        high: upper quartile.
        n_rounds: how many single ratios that is.
    """

    value: float
    low: float
    high: float
    n_rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Ratio":
        """Median and quartiles of some values, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))

    def map(self, function: Callable[[float], float]) -> "Ratio":
        """The same under a function that keeps or turns the order."""
        low, high = sorted((function(self.low), function(self.high)))
        return Ratio(function(self.value), low, high, self.n_rounds)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} .. {self.high:.3f})"


def in_turn(
    ways: Mapping[Name, Callable[[], object]],
    *,
    budget_s: float,
    fewest: int = FEWEST_ROUNDS,
    on_round: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Run every way once per round until the time is used up.

    Args:
        ways: by name; each does its whole work in one call.
        budget_s: no round begins that would, at the pace so far, end later.
        fewest: rounds that are run in any case.
        on_round: told the number of finished rounds.
        clock: seconds.

    Returns:
        Seconds of each way's turns, in the order of the rounds.
    """
    taken: dict[Name, list[float]] = {name: [] for name in ways}
    began_s = clock()
    n_rounds = 0
    while n_rounds < fewest or (clock() - began_s) * (n_rounds + 1) / n_rounds <= budget_s:
        for name, work in ways.items():
            started_s = clock()
            work()
            taken[name].append(clock() - started_s)
        n_rounds += 1
        on_round(n_rounds)
    return taken


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """`above / below`, round by round."""
    return Ratio.of([one / other for one, other in zip(above, below, strict=True)])


def rates(taken_s: Sequence[float], n_items: float) -> list[float]:
    """Items per second of each turn."""
    return [n_items / taken for taken in taken_s]
