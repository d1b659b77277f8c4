"""Which type of weights, and which form of linear layers, computes fastest on this machine.

On CUDA the card's generation tells. On the CPU flags do not: a processor may know bfloat16 and be no faster for it, or
run in a container that hides what it can; packed layers may be slower than plain steps on older ones. So layers of the
backbone's own width are timed in all forms.
"""

import time
from collections.abc import Sequence
from typing import Final

import torch

from prompted_clip.backbone import image_tower_size
from prompted_clip.fused_linear import Linears, packs

CAPABILITIES: Final = (((8, 0), torch.bfloat16), ((7, 0), torch.float16))
"""The first CUDA compute capability with matrix units for a type; of two the first, as float16 has a narrower range.
Older cards emulate bfloat16, slower than float32."""
CLEAR_GAIN: Final = 1.3
"""bfloat16 costs digits, so it has to be this much faster."""
LEAST_OPERATIONS: Final = 1e9
"""Per image. Below that, products are not what an answer waits for, and a busy moment must not decide."""
N_ROWS: Final = 256
N_TRIALS: Final = 5
PACKED_FLOAT32: Final = Linears(torch.float32, is_packed=True)
PLAIN_FLOAT32: Final = Linears(torch.float32, is_packed=False)
PACKED_BFLOAT16: Final = Linears(torch.bfloat16, is_packed=True)


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


def fastest_linears(arch: str, device: torch.device, dtype: torch.dtype) -> Linears:
    """The form of linear layers that serves images fastest; takes well under a second.

    Args:
        arch: the backbone's name; small and unknown ones get the usual form.
        device: where it is.
        dtype: of its weights.
    """
    usual, size = Linears.usual(device, dtype), image_tower_size(arch)
    # In bfloat16 plain steps are packed anew every time.
    if not usual.is_packed or dtype != torch.float32 or size is None or not is_heavy(arch):
        return usual
    packed_s, plain_s = _best_times_s([usual, PLAIN_FLOAT32], size.width)
    return usual if packed_s <= plain_s else PLAIN_FLOAT32


def bfloat16_gain(width: int) -> float:
    """How many times faster than in float32, in its faster form, a block's widest layers are in bfloat16."""
    packed_s, plain_s, narrow_s = _best_times_s([PACKED_FLOAT32, PLAIN_FLOAT32, PACKED_BFLOAT16], width)
    return min(packed_s, plain_s) / narrow_s


@torch.inference_mode()
def _best_times_s(forms: Sequence[Linears], width: int) -> list[float]:
    """Seconds that a block's widest layers take in each form, on torch's present threads.

    The forms take turns and the best of a few trials counts, so that what else runs here weighs little.
    """
    layers = [_Mlp(form, width) for form in forms]
    trials_s = [[_time_s(layer) for layer in layers] for _ in range(1 + N_TRIALS)]
    return [min(times_s) for times_s in zip(*trials_s[1:], strict=True)]


class _Mlp:
    """The two layers that a block spends most of its time in, without what lies around them."""

    def __init__(self, form: Linears, width: int) -> None:
        wide, narrow = (torch.full(shape, 1 / width) for shape in ((4 * width, width), (width, 4 * width)))
        self._fc = form.layer(wide, torch.zeros(4 * width), "gelu")
        self._proj = form.layer(narrow, torch.zeros(width))
        self._x_MI = torch.ones(N_ROWS, width, dtype=form.dtype)

    def run(self) -> None:
        """Compute both."""
        self._proj(self._fc(self._x_MI), self._x_MI)


def _time_s(layers: _Mlp) -> float:
    began_s = time.perf_counter()
    layers.run()
    return time.perf_counter() - began_s
