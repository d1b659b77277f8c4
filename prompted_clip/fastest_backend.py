"""The fastest backend and float type on this CPU: a block of the tower is timed in torch and in OpenVINO at startup.

Legend: B rows, N tokens of a row, W tower width.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor, nn

from prompted_clip.backbone import vision_config
from prompted_clip.frozen_linear import make_linear, packs
from prompted_clip.fused_tower import Block
from prompted_clip.internals import BlockWeights
from prompted_clip.openvino_tower import compile_model, has_bfloat16, openvino
from prompted_clip.precision import CPU, MIN_GAIN, N_TRIALS, fastest_dtype, is_heavy

MIN_OPENVINO_GAIN: Final = 1.1
"""A block is not a tower: OpenVINO must win by more than the two may differ in the rest."""
N_ROWS: Final = 4
N_TOKENS: Final = 209
HEAD_WIDTH: Final = 64

Choice = tuple[str, str]
"""Backend and dtype."""


def fastest_backend(arch: str, device: str) -> Choice:
    """The backend and dtype that serve images fastest, as `caspl serve` names them; never int8.

    It is torch on a GPU, for small and unknown backbones, and without the package `openvino`.
    """
    if device != "cpu" or not is_heavy(arch) or find_spec("openvino") is None:
        return "torch", str(fastest_dtype(arch, device)).removeprefix("torch.")
    return best_choice(time_blocks(arch))


def best_choice(times_s: dict[Choice, float]) -> Choice:
    """The fastest one of timed choices, with the least gains that bfloat16 and OpenVINO must have."""
    float32, bfloat16 = (
        min(
            (("torch", dtype), ("openvino", dtype)),
            key=lambda choice: times_s.get(choice, math.inf) * (MIN_OPENVINO_GAIN if choice[0] == "openvino" else 1),
        )
        for dtype in ("float32", "bfloat16")
    )
    is_worth_digits = times_s[float32] >= MIN_GAIN * times_s.get(bfloat16, math.inf)
    return bfloat16 if is_worth_digits else float32


@torch.inference_mode()
def time_blocks(arch: str) -> dict[Choice, float]:
    """Seconds of a block with random weights on torch's current number of threads, by backend and dtype."""
    weights = random_block(vision_config(arch)["width"])
    x_BNW = torch.randn(N_ROWS, N_TOKENS, vision_config(arch)["width"], generator=torch.Generator().manual_seed(0))
    times_s: dict[Choice, float] = {}
    for packed in (True, False):
        time_s = _best_time_s(partial(_torch_block(weights, torch.float32, packed=packed), x_BNW, N_TOKENS))
        times_s["torch", "float32"] = min(time_s, times_s.get(("torch", "float32"), time_s))
    if packs(CPU, torch.bfloat16):
        block = _torch_block(weights, torch.bfloat16, packed=True)
        times_s["torch", "bfloat16"] = _best_time_s(partial(block, x_BNW.bfloat16(), N_TOKENS))
    plain = _OneBlock(_torch_block(weights, torch.float32, packed=False))
    model = openvino().convert_model(torch.export.export(plain, (x_BNW,)))
    for dtype in ("float32", "bfloat16") if has_bfloat16() else ("float32",):
        request = compile_model(model, dtype, n_threads=torch.get_num_threads()).create_infer_request()
        times_s["openvino", dtype] = _best_time_s(partial(request.infer, [x_BNW.numpy()], share_inputs=True))
    return times_s


def random_block(width: int) -> BlockWeights:
    """Weights of a block of ViT's shape."""

    def linear(n_out: int, n_in: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n_out, n_in) / n_in**0.5, torch.zeros(n_out)

    return BlockWeights(
        n_heads=max(1, width // HEAD_WIDTH),
        ln_1=nn.LayerNorm(width),
        qkv=linear(3 * width, width),
        out=linear(width, width),
        ln_2=nn.LayerNorm(width),
        fc=linear(4 * width, width),
        proj=linear(width, 4 * width),
        activation=nn.GELU(),
        activation_kind="gelu",
    )


class _OneBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = block

    def forward(self, x_BNW: Tensor) -> Tensor:
        output: Tensor = self._block(x_BNW, N_TOKENS)
        return output


def _torch_block(weights: BlockWeights, dtype: torch.dtype, *, packed: bool) -> nn.Module:
    return Block(weights, partial(make_linear, dtype=dtype, packed=packed), dtype, len(weights.fc[1]))


def _best_time_s(work: Callable[[], object]) -> float:
    times_s = []
    for _ in range(1 + N_TRIALS):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s[1:])
