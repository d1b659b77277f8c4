"""The fastest dtype and form of linear layers on this machine.

On CUDA the compute capability decides. CPU flags do not: a processor may support bfloat16 without being faster, and
packed layers are slower than plain ones on some. So a block's widest layers are timed at startup, in under a second.
"""

import time
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from prompted_clip.backbone import vision_config
from prompted_clip.frozen_linear import make_linear, packs

CAPABILITIES: Final = (((8, 0), torch.bfloat16), ((7, 0), torch.float16))
"""First CUDA compute capability with matrix units for a dtype; bfloat16 first, as float16 has a narrower range."""
MIN_GAIN: Final = 1.3
"""bfloat16 costs digits, so it must be this much faster."""
MIN_OPERATIONS: Final = 1e9
"""Per image, in the blocks' linear layers. Smaller towers are not limited by them, and timings are noisy."""
N_ROWS: Final = 256
N_TRIALS: Final = 5
CPU: Final = torch.device("cpu")


def fastest_dtype(arch: str, device: str) -> torch.dtype:
    """The dtype that serves images fastest; on a CPU, float32 for unknown and small backbones."""
    if device.startswith("cuda"):
        found = torch.cuda.get_device_capability(device)
        return next((dtype for capability, dtype in CAPABILITIES if found >= capability), torch.float32)
    if not is_heavy(arch) or not packs(CPU, torch.bfloat16):
        return torch.float32
    float32_s = min(time_layers(arch, torch.float32, packed=packed) for packed in (True, False))
    return torch.bfloat16 if float32_s / time_layers(arch, torch.bfloat16, packed=True) >= MIN_GAIN else torch.float32


def is_packed_faster(arch: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed layers serve images fastest.

    Not timed and packed where possible: unknown and small backbones, and bfloat16, in which plain layers pack the
    weights on every call.
    """
    if not packs(device, dtype) or dtype != torch.float32 or not is_heavy(arch):
        return packs(device, dtype)
    return time_layers(arch, dtype, packed=True) <= time_layers(arch, dtype, packed=False)


def is_heavy(arch: str) -> bool:
    """Whether matrix products dominate the time of an image; False for unknown architectures."""
    config = vision_config(arch)
    names = ("width", "layers", "image_size", "patch_size")
    sizes = [config[name] for name in names if isinstance(config.get(name), int)]
    if len(sizes) < len(names):  # not a ViT
        return False
    width, n_layers, image_size, patch_size = sizes
    n_tokens = 1 + (image_size // patch_size) ** 2
    return bool(2 * n_tokens * n_layers * 12 * width**2 >= MIN_OPERATIONS)


@torch.inference_mode()
def time_layers(arch: str, dtype: torch.dtype, *, packed: bool) -> float:
    """Seconds of a block's two widest layers on torch's current threads, the best of a few trials."""
    width = vision_config(arch)["width"]
    linear = partial(make_linear, dtype=dtype, packed=packed)
    wide, narrow = (torch.full(shape, 1 / width) for shape in ((4 * width, width), (width, 4 * width)))
    fc, proj = linear(wide, torch.zeros(4 * width), "gelu"), linear(narrow, torch.zeros(width))
    x_MI = torch.ones(N_ROWS, width, dtype=dtype)
    return min([_time_s(fc, proj, x_MI) for _ in range(1 + N_TRIALS)][1:])


def _time_s(fc: nn.Module, proj: nn.Module, x_MI: Tensor) -> float:
    start_s = time.perf_counter()
    proj(fc(x_MI), x_MI)
    return time.perf_counter() - start_s
