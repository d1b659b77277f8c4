"""Which type of weights computes fastest on this machine.

On CUDA the card's generation tells. On the CPU flags do not: a processor may know bfloat16 and be no faster for it, or
run in a container that hides what it can. So a layer of the backbone's own width is timed in both types.
"""

import time
from typing import Final

import torch

from prompted_clip.backbone import image_tower_size
from prompted_clip.fused_linear import fused_linear, packs

CAPABILITIES: Final = (((8, 0), torch.bfloat16), ((7, 0), torch.float16))
"""The first CUDA compute capability with matrix units for a type; of two the first, as float16 has a narrower range.
Older cards emulate bfloat16, slower than float32."""
CLEAR_GAIN: Final = 1.3
"""bfloat16 costs digits, so it has to be this much faster."""
LEAST_OPERATIONS: Final = 1e9
"""Per image. Below that, products are not what an answer waits for, and a busy moment must not decide."""
N_ROWS: Final = 512
N_TRIALS: Final = 5


def fastest_dtype(arch: str, device: str) -> torch.dtype:
    """The type that serves images fastest; takes well under a second.

    Args:
        arch: the backbone's name, known to `load_backbone`; others get float32.
        device: `cpu` or a CUDA device.
    """
    if device.startswith("cuda"):
        found = torch.cuda.get_device_capability(device)
        return next((dtype for capability, dtype in CAPABILITIES if found >= capability), torch.float32)
    size = image_tower_size(arch)
    if size is None or not is_heavy(arch) or not packs(torch.device(device), torch.bfloat16):
        return torch.float32
    return torch.bfloat16 if bfloat16_gain(size.width) >= CLEAR_GAIN else torch.float32


def is_heavy(arch: str) -> bool:
    """Whether an image's answer waits for matrix products rather than for the steps between them."""
    size = image_tower_size(arch)
    return size is not None and size.operations >= LEAST_OPERATIONS


@torch.inference_mode()
def bfloat16_gain(width: int) -> float:
    """How many times faster a block's widest layer is in bfloat16 than in float32, on torch's present threads.

    The types take turns and the best of a few trials counts, so that what else runs here weighs little.
    """
    layers = [_layer(width, dtype) for dtype in (torch.float32, torch.bfloat16)]
    trials_s = [[_time_s(layer, x_MI) for layer, x_MI in layers] for _ in range(1 + N_TRIALS)]
    return min(pair[0] for pair in trials_s[1:]) / min(pair[1] for pair in trials_s[1:])


def _layer(width: int, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.Tensor]:
    weight = torch.full((4 * width, width), 1 / width, dtype=dtype)
    return fused_linear(weight, torch.zeros(4 * width, dtype=dtype), "gelu"), torch.ones(N_ROWS, width, dtype=dtype)


def _time_s(layer: torch.nn.Module, x_MI: torch.Tensor) -> float:
    began_s = time.perf_counter()
    layer(x_MI)
    return time.perf_counter() - began_s
