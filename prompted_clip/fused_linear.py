"""Linear layers of a frozen model with what follows them worked in: an activation, or the sum with a residual.

On the CPU oneDNN keeps the weights in the order its kernels read and finishes each tile of the product while it is in
the cache; torch has that as operators without a public name, which its own compiler uses. Where they are missing, on
other devices and for other types, the same layer is computed in plain steps, and on some processors that is faster
(`precision.py` measures it). Does not know what the layers are for.

Legend: M rows, I inputs, O outputs.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "gelu", "silu"]

_PACKED: Final = {"none": ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}
"""oneDNN's names; GELU's second word asks for the exact one."""
_ROWS_HINT: Final = 1024
"""The order of weights that suits hundreds of rows and more also serves few; the one for few does not serve many."""

MOST_INPUTS: Final = 1024
"""Of one packed bfloat16 product; more at once take longer than in shares: see docs/decisions/0015."""
_WHOLE_VECTORS: Final = 64


@dataclass(frozen=True)
class Linears:
    """How a tower's frozen linear layers are computed.

    Attributes:
        dtype: of their weights, inputs and outputs.
        is_packed: by oneDNN with weights in its own order; otherwise in plain steps.
    """

    dtype: torch.dtype
    is_packed: bool

    @classmethod
    def usual(cls, device: torch.device, dtype: torch.dtype) -> "Linears":
        """Packed where that is possible."""
        return cls(dtype, packs(device, dtype))

    def layer(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> nn.Module:
        """A layer to be called with x [M, I], and without an activation with a residual [M, O] too if there is one.

        It gives act(x Wᵀ + b), or x Wᵀ + b + residual.

        Args:
            weight_OI: as `torch.nn.functional.linear` takes it, of any type.
            bias_O: likewise.
            activation: what follows.
        """
        kind = PackedLinear if self.is_packed else PlainLinear
        return kind(weight_OI.detach().to(self.dtype), bias_O.detach().to(self.dtype), activation)

    def slices(self, n_inputs: int) -> list[slice]:
        """Which of a wide layer's inputs to multiply at once, the shares to be summed; all where that is fastest.

        Returns:
            Slices of nearly one size that cover the inputs in order, each but the last of a multiple of 64.
        """
        n_slices = -(-n_inputs // MOST_INPUTS) if self.is_packed and self.dtype is torch.bfloat16 else 1
        edges = [index * n_inputs // n_slices // _WHOLE_VECTORS * _WHOLE_VECTORS for index in range(n_slices)]
        return [slice(*edge) for edge in pairwise([*edges, n_inputs])]


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed layers are there for a device and a type."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators: Any = torch.ops.mkldnn
    has_operators = hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")
    if dtype is torch.bfloat16:
        return has_operators and bool(operators._is_mkldnn_bf16_supported())
    return has_operators and dtype is torch.float32


class PlainLinear(nn.Module):
    """In plain steps, on any device."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> None:
        super().__init__()
        self._weight_OI, self._bias_O = weight_OI, bias_O
        self._activation: str = activation

    def forward(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        """[M, O] in the weight's type."""
        y_MO = F.linear(x_MI, self._weight_OI, self._bias_O)
        if self._activation == "gelu":
            y_MO = F.gelu(y_MO)
        elif self._activation == "silu":
            y_MO = F.silu(y_MO)
        return y_MO if residual_MO is None else y_MO.add_(residual_MO)


class PackedLinear(nn.Module):
    """By oneDNN, with the weight in its own order."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, activation: Activation = "none") -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _ROWS_HINT)
        self._bias_O = bias_O.contiguous()
        self._name, self._algorithm = _PACKED[activation]

    def forward(self, x_MI: Tensor, residual_MO: Tensor | None = None) -> Tensor:
        """[M, O] in the weight's type."""
        if residual_MO is None:
            return torch.ops.mkldnn._linear_pointwise(x_MI, self._weight, self._bias_O, self._name, [], self._algorithm)
        # TorchScript finds the form by the arguments; so would Python, but slowly.
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.ops.mkldnn._linear_pointwise(x_MI, residual_MO, self._weight, self._bias_O, "add")
        return torch.ops.mkldnn._linear_pointwise.binary(x_MI, residual_MO, self._weight, self._bias_O, "add")
