"""Linear layers over frozen weights with a fused activation or residual sum: by oneDNN on the CPU, or plain.

On ViT-B-16 in float32, oneDNN's prepacked layers are 1.36 times as fast as plain ones with AVX-512 (2.72 against 2.00
images/s and core), and plain ones 1.18 times as fast with AVX2 (3.70 against 3.13 on two cores): `fastest_backend.py`
times both at startup. In bfloat16 plain layers pack the weights on every call.

Legend: M rows, I inputs, O outputs.
"""

from collections.abc import Callable
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS_HINT: Final = 1024
"""Weights packed for many rows also serve few; the reverse is slow."""

Activation = Literal["none", "gelu", "silu"]
_ONEDNN: Final = {"none": ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}
"""oneDNN's names and algorithms; `none` is the exact GELU."""


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked layers support a device and dtype."""
    operators: Any = torch.ops.mkldnn
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or not has_onednn or not hasattr(operators, "_linear_pointwise"):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported()))


class PlainLinear(nn.Module):
    """activation(x Wᵀ + b), or without an activation x Wᵀ + b + residual; torch's public operators, on any device."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> None:
        super().__init__()
        self._weight_OI, self._bias_O = weight_OI, bias_O
        self._activation: str = activation

    def forward(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        """[M, O] in the weight's dtype."""
        y_MO = F.linear(x_MI, self._weight_OI, self._bias_O)
        if self._activation == "gelu":
            y_MO = F.gelu(y_MO)
        elif self._activation == "silu":
            y_MO = F.silu(y_MO)
        return y_MO if residual_MO is None else y_MO.add_(residual_MO)


class PackedLinear(nn.Module):
    """The same by oneDNN, with a prepacked weight; the operators are private to torch (its compiler uses them)."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS_HINT)
        self._bias_O = bias_O.contiguous()
        self._name, self._algorithm = _ONEDNN[activation]

    def forward(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        """[M, O] in the weight's dtype."""
        if residual_MO is None:
            return torch.ops.mkldnn._linear_pointwise(x_MI, self._weight, self._bias_O, self._name, [], self._algorithm)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.ops.mkldnn._linear_pointwise(x_MI, residual_MO, self._weight, self._bias_O, "add")
        return torch.ops.mkldnn._linear_pointwise.binary(x_MI, residual_MO, self._weight, self._bias_O, "add")


MakeLinear = Callable[..., nn.Module]
"""(weight, bias, activation) of any dtype -> a layer."""


def make_linear(
    weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none", *, dtype: torch.dtype, packed: bool
) -> nn.Module:
    """A frozen linear layer of a dtype."""
    kind = PackedLinear if packed else PlainLinear
    return kind(weight_OI.detach().to(dtype), bias_O.detach().to(dtype), activation)
