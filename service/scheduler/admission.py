"""Admission control: predicts waits from the queue's length and what batches of each size took.

Sizes are grouped by powers of two, each with a moving average; others are predicted in proportion to the nearest. A
row's own batch is assumed to be as large as the last one, since later rows join it.
"""

from __future__ import annotations

from typing import Final

SMOOTHING: Final = 0.2  # weight of the newest batch in a moving average
MARGIN: Final = 1.5  # answers may take this much longer than predicted


class Admission:
    """Predicts waits from past batches, for `max_running` concurrent ones of at most `max_batch_rows` rows.

    `n_running` batches are on the device; it `is_idle` if one that is handed over now starts immediately.
    """

    def __init__(self, max_batch_rows: int, max_running: int) -> None:
        self.n_running, self.is_idle, self._last_rows = 0, True, 0
        self._row_s: dict[int, float] = {}  # seconds per row, by the size's power of two
        self._max_batch_rows, self._max_running = max_batch_rows, max_running
        self._running: dict[object, tuple[float | None, int]] = {}  # when it started (None: it waits), and its rows

    def start(self, batch: object, n_rows: int, now_s: float) -> None:
        """Record that a batch is handed to the device."""
        self._running[batch] = (now_s if self.is_idle else None, n_rows)
        self._last_rows = n_rows
        self.n_running += 1
        self.is_idle = self.n_running < self._max_running

    def finish(self, batch: object, now_s: float, *, is_typical: bool) -> None:
        """Record that a batch has finished and the next one starts; only a typical batch updates an average."""
        started_s, n_rows = self._running.pop(batch)
        self.n_running -= 1
        self.is_idle = self.n_running < self._max_running
        if is_typical and started_s is not None:
            power, row_s = n_rows.bit_length(), (now_s - started_s) / n_rows
            known_s = self._row_s.get(power, row_s)
            self._row_s[power] = known_s + SMOOTHING * (row_s - known_s)
        for behind, (since_s, n_waiting) in self._running.items():
            if since_s is None:
                self._running[behind] = (now_s, n_waiting)
                break

    def seconds(self, n_rows: int) -> float:
        """Predicted time of a batch of `n_rows`; 0 before the first batch."""
        power = n_rows.bit_length()
        if power not in self._row_s:
            power = min(self._row_s, key=lambda known: abs(known - power), default=0)
        return n_rows * self._row_s.get(power, 0.0)

    def free_in_s(self, now_s: float) -> float:
        """Seconds until a batch that is handed over now starts."""
        if self.is_idle:
            return 0.0
        ends_s = [since_s + self.seconds(n) for since_s, n in self._running.values() if since_s is not None]
        behind_s = sum([self.seconds(n) for since_s, n in self._running.values() if since_s is None])
        return max(0.0, min(ends_s, default=now_s) - now_s) + behind_s / self._max_running

    def predict(self, n_ahead: int, now_s: float) -> tuple[float, float]:
        """Seconds until a row with `n_ahead` rows ahead of it in the queue starts, and until it is answered."""
        n_rounds, n_before = divmod(n_ahead, self._max_batch_rows * self._max_running)
        wait_s = self.free_in_s(now_s) + n_rounds * self.seconds(self._max_batch_rows)
        return wait_s, wait_s + self.seconds(max(self._last_rows, n_before // self._max_running + 1))
