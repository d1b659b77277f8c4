"""The served image tower's residual blocks over frozen weights, in few and large steps.

QuickGELU is a SiLU whose factor stands in the weights around it; activations and residual sums are finished inside the
products where the device can (`fused_linear.py`); attention is torch's fused one. Written so that TorchScript takes it.

Legend: B rows, N tokens of a row, M all rows' tokens; W tower width; in attention H heads, Q of the tokens that ask,
C a head's width.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompted_clip.fused_linear import Activation, Linears
from prompted_clip.internals import BlockWeights, NormWeights

QUICK: Final = 1.702
"""QuickGELU is x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
_FUSED: Final[dict[str, Activation]] = {"gelu": "gelu", "quick_gelu": "silu", "other": "none"}


class FusedNorm(nn.Module):
    """A LayerNorm; torch computes it in float32 for narrower types."""

    def __init__(self, weights: NormWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self._scale_W, self._shift_W = weights.scale_W.detach().to(dtype), weights.shift_W.detach().to(dtype)
        self._eps = weights.eps

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and type."""
        return F.layer_norm(x, self._scale_W.shape, self._scale_W, self._shift_W, self._eps)


class FusedMlp(nn.Module):
    """x + proj(activation(fc(ln_2(x)))) over rows [M, W].

    The hidden layer is worked out in slices where products of so many inputs are slow. Their shares are summed before x
    is added: x has the larger numbers, and rounding it after each share would double the error.
    """

    def __init__(self, weights: BlockWeights, linears: Linears) -> None:
        super().__init__()
        self._norm = FusedNorm(weights.ln_2, linears.dtype)
        (fc_weight, fc_bias), (proj_weight, proj_bias) = weights.fc, weights.proj
        if weights.activation_kind == "quick_gelu":
            fc_weight, fc_bias, proj_weight = fc_weight * QUICK, fc_bias * QUICK, proj_weight / QUICK
        parts = [slice(0, len(fc_bias))]
        if weights.activation_kind != "other":  # which may mix what it is given
            parts = linears.slices(len(fc_bias))
        fused, no_bias = _FUSED[weights.activation_kind], torch.zeros_like(proj_bias)
        self._first, *others = (
            _Share(
                linears.layer(fc_weight[part], fc_bias[part], fused),
                weights.activation if weights.activation_kind == "other" else None,
                linears.layer(proj_weight[:, part], no_bias if part.start else proj_bias),
            )
            for part in parts
        )
        self._others = nn.ModuleList(others)

    def forward(self, x_MW: Tensor) -> Tensor:
        """[M, W]."""
        normed_MW = self._norm(x_MW)
        if len(self._others) == 0:
            return self._first(normed_MW, x_MW)
        sum_MW = self._first(normed_MW, None)
        for share in self._others:
            sum_MW = share(normed_MW, sum_MW)
        return sum_MW.add_(x_MW)


class _Share(nn.Module):
    """What a slice of the hidden layer adds to a sum."""

    def __init__(self, fc: nn.Module, loose: nn.Module | None, proj: nn.Module) -> None:
        super().__init__()
        self._fc, self._loose, self._proj = fc, loose, proj

    def forward(self, normed_MW: Tensor, sum_MW: Tensor | None) -> Tensor:
        """The sum with it, [M, W]."""
        hidden = self._fc(normed_MW)
        if self._loose is not None:
            hidden = self._loose(hidden)
        return self._proj(hidden, sum_MW)


class FusedBlock(nn.Module):
    """A residual block over all tokens."""

    def __init__(self, weights: BlockWeights, linears: Linears) -> None:
        super().__init__()
        self._n_heads = weights.n_heads
        self._norm = FusedNorm(weights.ln_1, linears.dtype)
        self._qkv = linears.layer(*weights.qkv)
        self._out = linears.layer(*weights.out)
        self._mlp = FusedMlp(weights, linears)

    def forward(self, x_BNW: Tensor, beside_BPW: Tensor | None = None) -> Tensor:
        """[B, N, W]; tokens beside them are attended to, and nothing is worked out at their positions."""
        n_rows, n_tokens, width = x_BNW.shape
        seen_BSW = x_BNW if beside_BPW is None else torch.cat([x_BNW, beside_BPW], dim=1)
        qkv = self._qkv(self._norm(seen_BSW.flatten(0, 1))).view(n_rows, -1, 3, self._n_heads, width // self._n_heads)
        attended = attention(qkv[:, :n_tokens, 0], qkv[:, :, 1:])
        x_MW = self._out(attended.reshape(-1, width), x_BNW.flatten(0, 1))
        return self._mlp(x_MW).view(n_rows, n_tokens, width)


class FusedLastBlock(nn.Module):
    """The last block at the class token, the first of N: it attends to all tokens, and nothing reads the others."""

    def __init__(self, weights: BlockWeights, linears: Linears) -> None:
        super().__init__()
        self._n_heads = weights.n_heads
        self._norm = FusedNorm(weights.ln_1, linears.dtype)
        weight, bias = weights.qkv
        width = weight.shape[1]
        self._q = linears.layer(weight[:width], bias[:width])
        self._kv = linears.layer(weight[width:], bias[width:])
        self._out = linears.layer(*weights.out)
        self._mlp = FusedMlp(weights, linears)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """[B, W]."""
        n_rows, n_tokens, width = x_BNW.shape
        normed_BNW = self._norm(x_BNW)
        q_B1HC = self._q(normed_BNW[:, 0]).view(n_rows, 1, self._n_heads, -1)
        kv = self._kv(normed_BNW.view(-1, width)).view(n_rows, n_tokens, 2, self._n_heads, -1)
        x_BW = self._out(attention(q_B1HC, kv).reshape(n_rows, width), x_BNW[:, 0].contiguous())
        return self._mlp(x_BW)


def attention(q_BQHC: Tensor, kv_BN2HC: Tensor) -> Tensor:
    """softmax(q kᵀ / √C) v for every head: [B, Q, H, C]."""
    k_BNHC, v_BNHC = kv_BN2HC.unbind(2)
    attended_BHQC = F.scaled_dot_product_attention(
        q_BQHC.transpose(1, 2), k_BNHC.transpose(1, 2), v_BNHC.transpose(1, 2)
    )
    return attended_BHQC.transpose(1, 2)
