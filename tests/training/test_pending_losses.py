"""Losses on CUDA reach the host one step later."""

import pytest
import torch

from training.errors import DivergedError
from training.pending_losses import PendingLosses
from training.recipe import Recipe


@pytest.mark.gpu
def test_on_cuda_a_loss_is_awaited_after_the_next_steps_work_is_queued():
    appended = []
    losses = PendingLosses(appended, Recipe(), n_per_epoch=2)
    for value, expected in ((3.0, [3.0]), (2.0, [3.0]), (1.0, [3.0, 2.0])):
        losses.add(torch.full((), value, device="cuda"))
        losses.wait()
        assert appended == expected
    losses.wait(for_last=True)
    assert appended == [3.0, 2.0, 1.0]
    losses.add(torch.full((), float("inf"), device="cuda"))
    losses.wait()
    losses.add(torch.full((), 1.0, device="cuda"))
    with pytest.raises(DivergedError, match=r"inf at step 3 \(epoch 1\)"):
        losses.wait()
    assert appended == [3.0, 2.0, 1.0]
