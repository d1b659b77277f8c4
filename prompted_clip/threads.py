"""How many cores the calling thread computes on."""

import torch


def compute_alone() -> None:
    """Have the calling thread compute on one core from now on, without a team of its own.

    Threads that begin later take the number over, unless they set their own.
    """
    torch.set_num_threads(1)
