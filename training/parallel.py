"""Data parallelism: each process computes a shard of every batch, then gradients are all-reduced.

torchrun starts one process per device; accelerate sets up process groups and devices. Prompts are small, so one
all-reduce of all gradients per step is the only communication. Without torchrun there is one process.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class World:
    """The process group of a run.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
        accelerator: None for a single process.
    """

    rank: int = 0
    size: int = 1
    accelerator: "Accelerator | None" = None

    @property
    def device(self) -> str | None:
        """The device assigned to this process; None for a single process, which uses `--device`."""
        return str(self.accelerator.device) if self.accelerator is not None else None

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def shard(self, indices: Tensor) -> Tensor:
        """This process's images of a batch; empty if the batch has fewer images than there are processes."""
        return indices[self.rank :: self.size]

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.accelerator is None:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        total: Tensor = self.accelerator.reduce(flat, reduction="sum")
        parts = torch.split(total, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def init_distributed(device: str) -> World:
    """Join torchrun's process group, or return a world of one process without torchrun.

    Args:
        device: value of `--device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import Accelerator  # noqa: PLC0415  slow to import

    accelerator = Accelerator(cpu=device == "cpu")
    return World(accelerator.process_index, accelerator.num_processes, accelerator)
