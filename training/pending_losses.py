"""Losses of training steps, read from the device without a wait in each step."""

import math
from collections import deque

import torch
from torch import Tensor

from training.errors import DivergedError
from training.recipe import Recipe


class PendingLosses:
    """Losses that are being copied to host memory.

    On CUDA a loss is awaited after the next step is queued, so that the device never waits for the host.

    Args:
        losses: of completed steps; appended to.
        recipe: for the message of an error.
        n_per_epoch: steps per epoch.
    """

    def __init__(self, losses: list[float], recipe: Recipe, n_per_epoch: int) -> None:
        self._losses, self._recipe, self._n_per_epoch = losses, recipe, n_per_epoch
        self._pending: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def add(self, loss: Tensor) -> None:
        """Add the next step's loss; on a CPU it is appended to `losses` at once.

        Raises:
            DivergedError: it is NaN or infinite.
        """
        if loss.device.type != "cuda":
            self._append(loss.item())
            return
        copy = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(loss.device))
        self._pending.append((copy, copied))

    def wait(self, *, for_last: bool = False) -> None:
        """Wait for all losses but the last, or for all in the first step or with `for_last`; append them to `losses`.

        Raises:
            DivergedError: a loss is NaN or infinite.
        """
        n_left = 1 if self._losses and not for_last else 0
        while len(self._pending) > n_left:
            copy, copied = self._pending.popleft()
            copied.synchronize()
            self._append(copy.item())

    def _append(self, value: float) -> None:
        step = len(self._losses)
        if not math.isfinite(value):
            msg = (
                f"The loss became {value} at step {step} (epoch {step // self._n_per_epoch}). Lower learning_rate (now "
                f"{self._recipe.learning_rate:g})."
            )
            raise DivergedError(msg)
        self._losses.append(value)
