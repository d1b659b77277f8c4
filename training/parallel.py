"""One run in several processes: each takes its part of every batch, and their gradients are summed.

Started by torchrun, one process per device; process groups and devices are accelerate's business. Prompts are small, so
one sum of all gradients per step is all that is exchanged. Without torchrun a world has one process and sums nothing.
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
    """The processes of a run.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        accelerator: what connects them; None for a single process.
    """

    rank: int = 0
    size: int = 1
    accelerator: "Accelerator | None" = None

    @property
    def device(self) -> str | None:
        """The device that is this process's own; None in a world of one, which takes what it is told."""
        return str(self.accelerator.device) if self.accelerator is not None else None

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def shard(self, indices: Tensor) -> Tensor:
        """This process's images of a batch; empty where there are fewer images than processes."""
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
    """The world that torchrun started this process in; a world of one without it.

    Args:
        device: `cpu`, `cuda` or `auto`, as on the command line.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import Accelerator  # noqa: PLC0415  slow to import, and only needed here

    accelerator = Accelerator(cpu=device == "cpu")
    return World(accelerator.process_index, accelerator.num_processes, accelerator)
