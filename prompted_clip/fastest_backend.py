"""The fastest backend, dtype and form of linear layers on this machine.

On CUDA the compute capability decides. CPU flags do not: a processor may support bfloat16 without being faster, and
packed layers are slower than plain ones on some. So a block of the tower is timed at startup.

Legend: B rows, N tokens of a row, W tower width.
"""

import math
import time
from collections.abc import Callable, Mapping
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

CAPABILITIES: Final = (((8, 0), "bfloat16"), ((7, 0), "float16"))
"""First CUDA compute capability with matrix units for a dtype; bfloat16 first, as float16 has a narrower range."""
MIN_BFLOAT16_GAIN: Final = 1.3
"""bfloat16 loses precision, so it must be this much faster."""
MIN_OPENVINO_GAIN: Final = 1.1
"""The rest of the tower may differ from its blocks, so OpenVINO must be this much faster."""
MIN_OPERATIONS: Final = 1e9
"""Per image, in the blocks' linear layers. Smaller towers are not limited by them, and timings are noisy."""
N_TOKENS: Final = 209
"""Of one image of ViT-B-16 with 12 prompt tokens."""
HEAD_WIDTH: Final = 64
N_TRIALS: Final = 5
CPU: Final = torch.device("cpu")

Choice = tuple[str, str]
"""Backend and dtype."""


def fastest_backend(arch: str, device: str, backend: str = "auto") -> Choice:
    """The backend and dtype that serve images fastest, as `caspl serve` names them; never int8.

    On a CPU, float32 for unknown and small backbones.

    Args:
        arch: the backbone.
        device: `cpu` or `cuda:N`.
        backend: `auto` takes OpenVINO where it is installed and faster.

    Raises:
        BackendError: OpenVINO was requested and is not installed.
    """
    if device.startswith("cuda"):
        return "torch", gpu_dtype(device)
    backends = [backend]
    if backend == "auto":
        backends = ["torch", "openvino"] if find_spec("openvino") else ["torch"]
    if not is_heavy(arch):
        return backends[0], "float32"
    choices = [(name, dtype) for name in backends for dtype in _float_types(name)]
    return choices[0] if len(choices) == 1 else best_choice({choice: time_block(arch, *choice) for choice in choices})


def gpu_dtype(device: str) -> str:
    """The fastest dtype of a CUDA device."""
    found = torch.cuda.get_device_capability(device)
    return next((dtype for capability, dtype in CAPABILITIES if found >= capability), "float32")


def is_packed_faster(arch: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed layers serve images fastest.

    Not timed and packed where possible: unknown and small backbones, and bfloat16, in which plain layers pack the
    weights on every call.
    """
    if not packs(device, dtype) or dtype != torch.float32 or not is_heavy(arch):
        return packs(device, dtype)
    return time_torch_block(arch, dtype, packed=True) <= time_torch_block(arch, dtype, packed=False)


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


def best_choice(times_s: Mapping[Choice, float]) -> Choice:
    """The fastest one of timed choices, with the least gains that bfloat16 and OpenVINO must have."""
    float32, bfloat16 = (
        min(
            (("torch", dtype), ("openvino", dtype)),
            key=lambda choice: times_s.get(choice, math.inf) * (MIN_OPENVINO_GAIN if choice[0] == "openvino" else 1),
        )
        for dtype in ("float32", "bfloat16")
    )
    return bfloat16 if times_s[float32] >= MIN_BFLOAT16_GAIN * times_s.get(bfloat16, math.inf) else float32


def _float_types(backend: str) -> list[str]:
    has_narrow = packs(CPU, torch.bfloat16) if backend == "torch" else has_bfloat16()
    return ["float32", "bfloat16"] if has_narrow else ["float32"]


def time_block(arch: str, backend: str, dtype: str) -> float:
    """Seconds of a block for one image on torch's current number of threads, in the faster form of its layers."""
    if backend == "openvino":
        return time_openvino_block(arch, dtype)
    if dtype == "bfloat16":
        return time_torch_block(arch, torch.bfloat16, packed=True)
    forms = (True, False) if packs(CPU, torch.float32) else (False,)
    return min(time_torch_block(arch, torch.float32, packed=packed) for packed in forms)


@torch.inference_mode()
def time_torch_block(arch: str, dtype: torch.dtype, *, packed: bool) -> float:
    """Seconds of a block in torch with one form of linear layers."""
    block = _torch_block(arch, dtype, packed=packed)
    return _best_time_s(partial(block, _tokens(arch).to(dtype), N_TOKENS))


@torch.inference_mode()
def time_openvino_block(arch: str, dtype: str) -> float:
    """Seconds of a block in OpenVINO."""
    block, x_BNW = _OneInput(_torch_block(arch, torch.float32, packed=False)), _tokens(arch)
    model = openvino().convert_model(torch.export.export(block, (x_BNW,)))
    request = compile_model(model, dtype, n_threads=torch.get_num_threads()).create_infer_request()
    return _best_time_s(partial(request.infer, [x_BNW.numpy()], share_inputs=True))


class _OneInput(nn.Module):
    """A block whose number of outputs is a constant."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = block

    def forward(self, x_BNW: Tensor) -> Tensor:
        output: Tensor = self._block(x_BNW, N_TOKENS)
        return output


def _torch_block(arch: str, dtype: torch.dtype, *, packed: bool) -> nn.Module:
    """A block of ViT's shape with constant weights."""
    width = vision_config(arch)["width"]

    def linear(n_out: int, n_in: int) -> tuple[Tensor, Tensor]:
        return torch.full((n_out, n_in), 1 / n_in), torch.zeros(n_out)

    weights = BlockWeights(
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
    return Block(weights, partial(make_linear, dtype=dtype, packed=packed), dtype, 4 * width)


def _tokens(arch: str) -> Tensor:
    """One image: [1, N, W]."""
    return torch.randn(1, N_TOKENS, vision_config(arch)["width"], generator=torch.Generator().manual_seed(0))


def _best_time_s(work: Callable[[], object]) -> float:
    """The fastest of a few trials after a warm-up, in seconds."""
    times_s = []
    for _ in range(1 + N_TRIALS):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s[1:])
