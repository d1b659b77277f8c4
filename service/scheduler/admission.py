"""Admission control: predicts the wait from the queue's length and a moving average of the batch time.

The prediction is optimistic while batches are small, since larger ones take longer; requests that are admitted but late
are dropped before they reach the device.
"""

from __future__ import annotations

from typing import Final

SMOOTHING: Final = 0.2  # weight of the newest batch in the moving average
MARGIN: Final = 1.2  # batches may take this much longer than predicted


class Admission:
    """Predicts waits from past batches.

    Args:
        max_batch_rows: rows in a full batch.
        max_running: batches that run concurrently.

    Attributes:
        batch_s: moving average of the batch time in seconds; 0 before the first batch.
        n_running: batches handed to the device and not finished.
        is_idle: whether a batch that is handed over now starts immediately.
    """

    def __init__(self, max_batch_rows: int, max_running: int) -> None:
        self.batch_s, self.n_running, self.is_idle = 0.0, 0, True
        self._rows_per_round = max_batch_rows * max_running
        self._max_running = max_running
        self._started_s: dict[object, float | None] = {}  # by batch; None while it waits behind a running one

    def start(self, batch: object, now_s: float) -> None:
        """Record that a batch is handed to the device."""
        self._started_s[batch] = now_s if self.is_idle else None
        self.n_running += 1
        self.is_idle = self.n_running < self._max_running

    def finish(self, batch: object, now_s: float, *, is_typical: bool) -> None:
        """Record that a batch has finished and the next one starts; only a typical batch updates the average."""
        started_s = self._started_s.pop(batch)
        self.n_running -= 1
        self.is_idle = self.n_running < self._max_running
        if is_typical and started_s is not None:
            weight = SMOOTHING if self.batch_s else 1.0
            self.batch_s += weight * (now_s - started_s - self.batch_s)
        for behind, since_s in self._started_s.items():
            if since_s is None:
                self._started_s[behind] = now_s
                break

    def free_in_s(self, now_s: float) -> float:
        """Seconds until a batch that is handed over now starts."""
        if self.is_idle:
            return 0.0
        started_s = [since_s for since_s in self._started_s.values() if since_s is not None]
        n_behind = self.n_running - len(started_s)
        return max(0.0, min(started_s) + self.batch_s - now_s) + n_behind * self.batch_s / self._max_running

    def wait_s(self, n_ahead: int, now_s: float) -> float:
        """Seconds until a row with `n_ahead` rows ahead of it in the queue starts."""
        return self.free_in_s(now_s) + n_ahead // self._rows_per_round * self.batch_s
