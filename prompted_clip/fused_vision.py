"""The image tower for serving: the same function as `vision.embed_image`, from uint8 pixels, in fewer and larger steps.

The frozen weights are taken over once. Normalisation of the pixels is part of the patch embedding, which is one matrix
product; QuickGELU is a SiLU whose factor stands in the weights around it; activations and residual sums are finished
inside the products where the device can (`fused_linear.py`); attention is torch's fused one; the last block works out
the class token only. On the CPU a batch passes in parts that stay near the caches. Training and the plain reference
stay with open_clip's own modules.

Legend: B rows, C/H/W image in pixels, K the side of a patch, M all rows' tokens; in attention H heads, N tokens,
Q of them that ask, C a head's width; W tower width, E joint width.
"""

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.fused_linear import Activation, FusedLinear, fused_linear, input_slices
from prompted_clip.internals import BlockWeights, NormWeights
from prompted_clip.prompts import PromptGrid

QUICK: Final = 1.702
"""QuickGELU is x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
_FUSED: Final[dict[str, Activation]] = {"gelu": "gelu", "quick_gelu": "silu", "other": "none"}
PART_BYTES: Final = 10 * 2**20
"""Most bytes, for each thread, of a part's widest layer on the CPU, by what `benchmarks/slices.py` measures."""
MOST_BYTES: Final = 24 * 2**20
"""Of all threads together: larger ones the allocator takes from the operating system anew each time, page by page."""


class FusedImageTower:
    """From uint8 pixels and prompts to embeddings, on the backbone's device and in its type.

    Args:
        backbone: whose weights to take over; it is not changed, and later changes to it do not reach this tower.
    """

    def __init__(self, backbone: Backbone) -> None:
        weights = internals.vision_weights(backbone.clip)
        self._dtype = backbone.dtype
        self._precise = torch.promote_types(backbone.dtype, torch.float32)
        self._patch = weights.patch_WCPP.shape[-1]
        self._grid = backbone.image_size // self._patch
        with torch.no_grad():
            self._embed, shift_W = _pixel_embedding(weights.patch_WCPP, backbone)
            positions_NW = weights.positions_NW.detach().to(self._precise).clone()
            positions_NW[0] += weights.class_W
            positions_NW[1:] += shift_W
            self._positions_NW = positions_NW
            self._ln_pre = self._norm(weights.ln_pre) if weights.ln_pre else None
            *first, last = weights.blocks
            self._blocks = [_Block(block, backbone.dtype) for block in first]
            self._last = _LastBlock(last, backbone.dtype)
            self._ln_post = self._norm(weights.ln_post, self._precise)
            self._projection_WE = weights.projection_WE.detach().to(self._precise)
        self._n_hidden = len(weights.blocks[0].fc[0])

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """The embeddings before they are brought to length 1; rows do not depend on each other.

        Args:
            pixels_BCHW: uint8, from `to_pixels`, on the backbone's device.
            grid: image prompts, boosting before adapting, shared or one per row; None is the plain tower.

        Returns:
            [B, E]; float32 for narrower backbones, since rounding here would cost and not help.
        """
        n_rows = len(pixels_BCHW)
        n_at_once = self._n_at_once(grid) if pixels_BCHW.device.type == "cpu" else n_rows
        if n_rows <= n_at_once:
            return self._forward(pixels_BCHW, grid)
        parts = parts_of(n_rows, n_at_once)
        own = [grid.rows(part) if grid is not None else None for part in parts]
        return torch.cat([self._forward(pixels_BCHW[part], prompts) for part, prompts in zip(parts, own, strict=True)])

    def _n_at_once(self, grid: PromptGrid | None) -> int:
        n_tokens = len(self._positions_NW) + (grid.n_tokens if grid is not None else 0)
        return rows_at_once(n_tokens, self._n_hidden, self._dtype, n_threads=torch.get_num_threads())

    def _forward(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        x_BNW = self._tokens(pixels_BCHW, grid)
        if self._ln_pre is not None:
            x_BNW = self._ln_pre(x_BNW)
        start = len(self._positions_NW)
        for index, block in enumerate(self._blocks):
            _put_prompts(x_BNW, grid, index, start)
            x_BNW = block(x_BNW)
        _put_prompts(x_BNW, grid, len(self._blocks), start)
        class_BW = self._last(x_BNW)
        return self._ln_post(class_BW.to(self._precise)) @ self._projection_WE

    def _tokens(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        """Class token, patches and layer 0's prompts, before `ln_pre`: [B, N, W]."""
        n_rows, side, patch = len(pixels_BCHW), self._grid, self._patch
        n_plain, width = self._positions_NW.shape
        whole = pixels_BCHW[..., : side * patch, : side * patch]
        strips = whole.reshape(n_rows, -1, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        patches = torch.empty(strips.shape, dtype=self._dtype, device=strips.device).copy_(strips)
        embedded = self._embed(patches.view(n_rows * side * side, -1)).view(n_rows, side * side, width)
        n_tokens = n_plain + (grid.n_tokens if grid is not None else 0)
        x_BNW = embedded.new_empty(n_rows, n_tokens, width)
        x_BNW[:, 0] = self._positions_NW[0]
        x_BNW[:, 1:n_plain] = embedded + self._positions_NW[1:]
        if grid is not None:
            x_BNW[:, n_plain:] = grid.layer(0, n_rows)
        return x_BNW

    def _norm(self, weights: NormWeights, dtype: torch.dtype | None = None) -> "_Norm":
        return _Norm(weights, dtype or self._dtype)


def rows_at_once(n_tokens: int, n_hidden: int, dtype: torch.dtype, *, n_threads: int = 1) -> int:
    """How many images the CPU takes together, at least one.

    Args:
        n_tokens: positions of an image, prompts included.
        n_hidden: width of the widest layer.
        dtype: of its numbers.
        n_threads: that compute together, each near caches of its own.
    """
    return max(1, min(PART_BYTES * n_threads, MOST_BYTES) // (n_tokens * n_hidden * dtype.itemsize))


def parts_of(n_rows: int, n_at_once: int) -> list[slice]:
    """A batch in as few parts as it takes, of nearly one size: an image left over would read all weights for itself.

    Args:
        n_rows: images in the batch, at least one.
        n_at_once: most in a part.
    """
    n_parts = -(-n_rows // n_at_once)
    edges = [index * n_rows // n_parts for index in range(n_parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


class _Norm:
    """A LayerNorm; torch computes it in float32 for narrower types."""

    def __init__(self, weights: NormWeights, dtype: torch.dtype) -> None:
        self._scale_W, self._shift_W = weights.scale_W.detach().to(dtype), weights.shift_W.detach().to(dtype)
        self._eps = weights.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._scale_W.shape, self._scale_W, self._shift_W, self._eps)


class _Mlp:
    """x + proj(activation(fc(ln_2(x)))) over rows [M, W].

    The hidden layer is worked out in slices where products of so many inputs are slow. Their shares are summed before x
    is added: x has the larger numbers, and rounding it after each share would double the error.
    """

    def __init__(self, weights: BlockWeights, dtype: torch.dtype) -> None:
        self._norm = _Norm(weights.ln_2, dtype)
        (fc_weight, fc_bias), (proj_weight, proj_bias) = weights.fc, weights.proj
        if weights.activation_kind == "quick_gelu":
            fc_weight, fc_bias, proj_weight = fc_weight * QUICK, fc_bias * QUICK, proj_weight / QUICK
        self._loose = weights.activation if weights.activation_kind == "other" else None
        parts = [slice(0, len(fc_bias))]
        if self._loose is None:  # any other may mix what it is given
            parts = input_slices(len(fc_bias), fc_weight.device, dtype)
        no_bias = torch.zeros_like(proj_bias)
        self._slices = [
            (
                _linear(fc_weight[part], fc_bias[part], dtype, _FUSED[weights.activation_kind]),
                _linear(proj_weight[:, part], no_bias if part.start else proj_bias, dtype),
            )
            for part in parts
        ]

    def __call__(self, x_MW: Tensor) -> Tensor:
        normed_MW = self._norm(x_MW)
        (fc, proj), *others = self._slices
        if not others:
            return proj(self._activated(fc(normed_MW)), x_MW)
        sum_MW = proj(self._activated(fc(normed_MW)))
        for fc, proj in others:
            sum_MW = proj(self._activated(fc(normed_MW)), sum_MW)
        return sum_MW.add_(x_MW)

    def _activated(self, hidden: Tensor) -> Tensor:
        return hidden if self._loose is None else self._loose(hidden)


class _Block:
    """A residual block over all tokens."""

    def __init__(self, weights: BlockWeights, dtype: torch.dtype) -> None:
        self._n_heads = weights.n_heads
        self._norm = _Norm(weights.ln_1, dtype)
        self._qkv = _linear(*weights.qkv, dtype)
        self._out = _linear(*weights.out, dtype)
        self._mlp = _Mlp(weights, dtype)

    def __call__(self, x_BNW: Tensor) -> Tensor:
        x_MW = x_BNW.flatten(0, 1)
        qkv = self._qkv(self._norm(x_MW)).view(*x_BNW.shape[:2], 3, self._n_heads, -1)
        attended = _attention(qkv[:, :, 0], qkv[:, :, 1:])
        x_MW = self._out(attended.reshape(x_MW.shape), x_MW)
        return self._mlp(x_MW).view(x_BNW.shape)


class _LastBlock:
    """The last block at the class token, the first of N: it attends to all tokens, and nothing reads the others."""

    def __init__(self, weights: BlockWeights, dtype: torch.dtype) -> None:
        self._n_heads = weights.n_heads
        self._norm = _Norm(weights.ln_1, dtype)
        weight, bias = weights.qkv
        width = weight.shape[1]
        self._q = _linear(weight[:width], bias[:width], dtype)
        self._kv = _linear(weight[width:], bias[width:], dtype)
        self._out = _linear(*weights.out, dtype)
        self._mlp = _Mlp(weights, dtype)

    def __call__(self, x_BNW: Tensor) -> Tensor:
        n_rows, n_tokens, width = x_BNW.shape
        normed_BNW = self._norm(x_BNW)
        q_B1HC = self._q(normed_BNW[:, 0]).view(n_rows, 1, self._n_heads, -1)
        kv = self._kv(normed_BNW.view(-1, width)).view(n_rows, n_tokens, 2, self._n_heads, -1)
        x_BW = self._out(_attention(q_B1HC, kv).reshape(n_rows, width), x_BNW[:, 0].contiguous())
        return self._mlp(x_BW)


def _attention(q_BQHC: Tensor, kv_BN2HC: Tensor) -> Tensor:
    """softmax(q kᵀ / √C) v for every head: [B, Q, H, C]."""
    k_BNHC, v_BNHC = kv_BN2HC.unbind(2)
    attended_BHQC = F.scaled_dot_product_attention(
        q_BQHC.transpose(1, 2), k_BNHC.transpose(1, 2), v_BNHC.transpose(1, 2)
    )
    return attended_BHQC.transpose(1, 2)


def _linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation = "none") -> FusedLinear:
    return fused_linear(weight.detach().to(dtype), bias.detach().to(dtype), activation)


def _pixel_embedding(patch_WCKK: Tensor, backbone: Backbone) -> tuple[FusedLinear, Tensor]:
    """The patch embedding of uint8 pixels, and what its rounded bias leaves over [W], in at least float32.

    w · (x / 255 - mean) / std = w' · x - w' · 255 mean. Whole numbers up to 255 are exact in bfloat16, and the bias
    belongs to the weights as they were rounded, so that pixels near the mean cost no precision.
    """
    precise = torch.promote_types(backbone.dtype, torch.float32)
    mean, std = (
        torch.tensor(backbone.preprocess[name], device=patch_WCKK.device, dtype=precise).view(1, -1, 1, 1)
        for name in ("mean", "std")
    )
    weight = (patch_WCKK.detach().to(precise) / (255 * std)).to(backbone.dtype)
    bias_W = -(weight.to(precise) * (255 * mean)).flatten(1).sum(dim=1)
    rounded_W = bias_W.to(backbone.dtype)
    return fused_linear(weight.flatten(1), rounded_W), bias_W - rounded_W.to(precise)


def _put_prompts(x_BNW: Tensor, grid: PromptGrid | None, index: int, start: int) -> None:
    """A later layer's own tokens over what the layer before left at their positions; the rest flows on."""
    if grid is None or not 0 < index < grid.max_depth:
        return
    flowing = x_BNW[:, start:]
    own = grid.layer(index, len(x_BNW))
    if index >= grid.min_depth:
        own = torch.where((grid.depths > index).unsqueeze(-1), own.to(x_BNW.dtype), flowing)
    flowing.copy_(own)
