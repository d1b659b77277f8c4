"""The image tower for serving: the same function as `vision.embed_image`, from uint8 pixels, in fewer and larger steps.

The frozen weights are taken over once. Normalisation of the pixels is part of the patch embedding, which is one matrix
product; the blocks are `fused_blocks.py`'s. What nobody reads is not worked out: the last block gives the class token
only, and prompts that the next layer replaces are attended to and no more. On the CPU a batch passes in parts that stay
near the caches, and its steps need no interpreter (`scripted.py`). Training and the plain reference stay with
open_clip's own modules.

Legend: B rows, C/H/W image in pixels, K the side of a patch, D prompt layers, P prompt positions, N tokens of a row,
W tower width, E joint width.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.fused_blocks import FusedBlock, FusedLastBlock, FusedNorm
from prompted_clip.fused_linear import Linears
from prompted_clip.internals import VisionWeights
from prompted_clip.prompts import PromptGrid, layer_of
from prompted_clip.scripted import scripted

PART_BYTES: Final = 10 * 2**20
"""Most bytes, for each thread, of a part's widest layer on the CPU, measured: docs/decisions/0015."""
MOST_BYTES: Final = 24 * 2**20
"""Of all threads together: larger ones the allocator takes from the operating system anew each time, page by page."""


class FusedImageTower:
    """From uint8 pixels and prompts to embeddings, on the backbone's device and in its type.

    Args:
        backbone: whose weights to take over; it is not changed, and later changes to it do not reach this tower.
        linears: how its layers are computed, in the backbone's type; None packs them where that is possible.

    Attributes:
        linears: how they are computed.
    """

    def __init__(self, backbone: Backbone, linears: Linears | None = None) -> None:
        self.linears = linears or Linears.usual(backbone.device, backbone.dtype)
        weights = internals.vision_weights(backbone.clip)
        with torch.no_grad():
            steps = ImageSteps(weights, backbone, self.linears)
        # On CUDA forwards are recorded, and no step is a step of the interpreter's either.
        self._steps: Callable[..., Tensor] = steps
        if backbone.device.type == "cpu":
            grey = torch.full((1, 3, backbone.image_size, backbone.image_size), 128, dtype=torch.uint8)
            self._steps = scripted(steps, grey, None, None, 0, 0)
        self._dtype = backbone.dtype
        self._n_plain = len(weights.positions_NW)
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
        max_microbatch = n_rows
        if pixels_BCHW.device.type == "cpu":
            max_microbatch = self.max_microbatch(grid.n_tokens if grid is not None else 0, torch.get_num_threads())
        if n_rows <= max_microbatch:
            return self._forward(pixels_BCHW, grid)
        parts = parts_of(n_rows, max_microbatch)
        own = [grid.rows(part) if grid is not None else None for part in parts]
        return torch.cat([self._forward(pixels_BCHW[part], prompts) for part, prompts in zip(parts, own, strict=True)])

    def max_microbatch(self, n_prompts: int, n_threads: int) -> int:
        """How many rows with so many prompt positions go together on a CPU; of more, one part after the other."""
        return rows_at_once(self._n_plain + n_prompts, self._n_hidden, self._dtype, n_threads=n_threads)

    def _forward(self, pixels_BCHW: Tensor, grid: PromptGrid | None) -> Tensor:
        if grid is None:
            return self._steps(pixels_BCHW, None, None, 0, 0)
        return self._steps(pixels_BCHW, grid.tokens, grid.depths, grid.min_depth, grid.max_depth)


class ImageSteps(nn.Module):
    """One forward; a `PromptGrid` is given as its parts."""

    def __init__(self, weights: VisionWeights, backbone: Backbone, linears: Linears) -> None:
        super().__init__()
        dtype, precise = backbone.dtype, torch.promote_types(backbone.dtype, torch.float32)
        self._patch: int = weights.patch_WCPP.shape[-1]
        self._grid = backbone.image_size // self._patch
        self._embed, shift_W = _pixel_embedding(weights.patch_WCPP, backbone, linears)
        positions_NW = weights.positions_NW.detach().to(precise).clone()
        positions_NW[0] += weights.class_W
        positions_NW[1:] += shift_W
        self._positions_NW = positions_NW
        self._ln_pre = FusedNorm(weights.ln_pre, dtype) if weights.ln_pre else None
        *first, last = weights.blocks
        self._blocks = nn.ModuleList([FusedBlock(block, linears) for block in first])
        self._last = FusedLastBlock(last, linears)
        self._ln_post = FusedNorm(weights.ln_post, precise)
        self._projection_WE = weights.projection_WE.detach().to(precise)
        self._like = positions_NW.new_empty(0, dtype=dtype)

    def forward(
        self, pixels_BCHW: Tensor, tokens: Tensor | None, depths: Tensor | None, min_depth: int, max_depth: int
    ) -> Tensor:
        """[B, E]."""
        x_BNW = self._image_tokens(pixels_BCHW)
        start = x_BNW.shape[1]
        for index, block in enumerate(self._blocks):
            # A token that the next layer drops is attended to, and nothing is worked out at its position.
            beside_BPW: Tensor | None = None
            if tokens is not None and depths is not None:
                if index < min_depth - 1:
                    beside_BPW = self._own(tokens, index, len(x_BNW))
                elif index < min_depth:
                    x_BNW = torch.cat([x_BNW, self._own(tokens, index, len(x_BNW))], dim=1)
                else:
                    _put_prompts(x_BNW[:, start:], tokens, depths, index, max_depth)
            x_BNW = block(x_BNW, beside_BPW)
        if tokens is not None and depths is not None:
            index = len(self._blocks)
            if index < min_depth:
                x_BNW = torch.cat([x_BNW, self._own(tokens, index, len(x_BNW))], dim=1)
            else:
                _put_prompts(x_BNW[:, start:], tokens, depths, index, max_depth)
        class_BW = self._last(x_BNW)
        return self._ln_post(class_BW.to(self._projection_WE.dtype)) @ self._projection_WE

    def _own(self, tokens: Tensor, index: int, n_rows: int) -> Tensor:
        """All positions' own tokens as block `index` is given them, one copy per row: [B, P, W]."""
        own_BPW = layer_of(tokens, index, n_rows)
        if index == 0 and self._ln_pre is not None:
            own_BPW = self._ln_pre(own_BPW)
        return own_BPW

    def _image_tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Class token and patches as the first block is given them: [B, N, W]."""
        n_rows, side, patch = len(pixels_BCHW), self._grid, self._patch
        n_plain, width = self._positions_NW.shape
        whole = pixels_BCHW[..., : side * patch, : side * patch]
        strips = whole.reshape(n_rows, -1, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        patches = self._like.new_empty(strips.shape).copy_(strips)
        embedded = self._embed(patches.view(n_rows * side * side, -1)).view(n_rows, side * side, width)
        x_BNW = embedded.new_empty(n_rows, n_plain, width)
        x_BNW[:, 0] = self._positions_NW[0]
        x_BNW[:, 1:] = embedded + self._positions_NW[1:]
        return x_BNW if self._ln_pre is None else self._ln_pre(x_BNW)


def rows_at_once(n_tokens: int, n_hidden: int, dtype: torch.dtype, *, n_threads: int = 1) -> int:
    """How many images the CPU takes together, at least one.

    Args:
        n_tokens: positions of an image, prompts included.
        n_hidden: width of the widest layer.
        dtype: of its numbers.
        n_threads: that compute together, each near caches of its own.
    """
    return max(1, min(PART_BYTES * n_threads, MOST_BYTES) // (n_tokens * n_hidden * dtype.itemsize))


def parts_of(n_rows: int, max_microbatch: int) -> list[slice]:
    """A batch in as few parts as it takes, of nearly one size: an image left over would read all weights for itself.

    Args:
        n_rows: images in the batch, at least one.
        max_microbatch: most in a part.
    """
    n_parts = -(-n_rows // max_microbatch)
    edges = [index * n_rows // n_parts for index in range(n_parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def _pixel_embedding(patch_WCKK: Tensor, backbone: Backbone, linears: Linears) -> tuple[nn.Module, Tensor]:
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
    return linears.layer(weight.flatten(1), rounded_W), bias_W - rounded_W.to(precise)


def _put_prompts(flowing_BPW: Tensor, tokens: Tensor, depths: Tensor, index: int, max_depth: int) -> None:
    """A later layer's own tokens over what the layer before left at their positions; the rest flows on."""
    if index < max_depth:
        own = layer_of(tokens, index, len(flowing_BPW)).to(flowing_BPW.dtype)
        flowing_BPW.copy_(torch.where((depths > index).unsqueeze(-1), own, flowing_BPW))
