"""Prompt tokens as inputs of a transformer: groups of different depth and length, concatenated.

A *grid* holds each position's own tokens for its first layers; from its depth on, a position keeps the previous layer's
output (CasPL, arXiv 2409.17805, section 3.2; deep prompts as in VPT, arXiv 2203.12119).

Legend: B rows, D prompt layers, P prompt positions, W tower width, N tokens of the sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prompted_clip.internals import read_block, take_position
from prompted_clip.transfers import to_device


@dataclass(frozen=True, eq=False)
class PromptGrid:
    """Prompt groups joined along the sequence.

    Attributes:
        tokens: [D, P, W], or [B, D, P, W] with one grid per row; zero from a position's depth on.
        depths: number of layers with tokens of their own per position, [P] or [B, P] int64.
        min_depth: the least of `depths`; layers above it need no mask.
    """

    tokens: Tensor
    depths: Tensor
    min_depth: int

    @property
    def max_depth(self) -> int:
        """D, the greatest depth."""
        return self.tokens.shape[-3]

    @property
    def n_tokens(self) -> int:
        """P, the prompt positions."""
        return self.tokens.shape[-2]

    def to(self, device: torch.device) -> "PromptGrid":
        """The same prompts on a device."""
        return replace(self, tokens=self.tokens.to(device), depths=self.depths.to(device))

    def rows(self, part: slice) -> "PromptGrid":
        """The prompts of some rows; a shared grid is returned as it is."""
        if self.tokens.ndim == 3:
            return self
        depths = self.depths if self.depths.ndim == 1 else self.depths[part]
        return replace(self, tokens=self.tokens[part], depths=depths)

    def layer(self, index: int, n_rows: int) -> Tensor:
        """The tokens of layer `index`, broadcast to [B, P, W]."""
        return self.tokens[..., index, :, :].expand(n_rows, -1, -1)


def join_groups(groups: Sequence[Tensor | None]) -> PromptGrid | None:
    """Concatenate prompt groups of one width, [depth, tokens, W] or [B, depth, tokens, W], along the positions.

    None and empty groups are skipped; None without any. Gradients flow to the groups.
    """
    present = [group for group in groups if group is not None and group.shape[-2] > 0]
    if not present:
        return None
    max_depth = max(group.shape[-3] for group in present)
    lead = max((group.shape[:-3] for group in present), key=len)
    padded = [_padded(group, max_depth).expand(*lead, -1, -1, -1) for group in present]
    depths = [group.shape[-3] for group in present for _ in range(group.shape[-2])]
    return PromptGrid(
        tokens=torch.cat(padded, dim=-2),
        depths=to_device(depths, present[0].device),
        min_depth=min(depths),
    )


def collate_grids(grids: Sequence[PromptGrid | None]) -> PromptGrid | None:
    """Collate a batch's [D, P, W] grids, one per row, to one [B, D, P, W] grid with the largest D.

    One grid for all rows, or None for all, is returned as it is.

    Raises:
        ValueError: rows with different numbers of prompt positions.
    """
    first = grids[0]
    if grids.count(first) == len(grids):
        return first
    rows = [grid for grid in grids if grid is not None]
    counts = {grid.n_tokens if grid is not None else 0 for grid in grids}
    if len(counts) != 1:
        msg = f"Rows of one batch need the same number of prompt tokens; found {sorted(counts)}."
        raise ValueError(msg)
    max_depth = max(grid.max_depth for grid in rows)
    missing = [max_depth - grid.max_depth for grid in rows]
    if any(missing):  # one concatenation of all layers, with the same zeros for all rows
        zeros = rows[0].tokens.new_zeros(max(missing), *rows[0].tokens.shape[1:])
        parts = [part for grid, n_layers in zip(rows, missing, strict=True) for part in (grid.tokens, zeros[:n_layers])]
        tokens = torch.cat(parts).view(len(rows), max_depth, *zeros.shape[1:])
    else:
        tokens = torch.stack([grid.tokens for grid in rows])
    return PromptGrid(
        tokens=tokens,
        depths=torch.stack([grid.depths for grid in rows]),
        min_depth=min(grid.min_depth for grid in rows),
    )


def _padded(tokens: Tensor, depth: int) -> Tensor:
    """Tokens with zeros up to a depth."""
    missing = depth - tokens.shape[-3]
    return nn.functional.pad(tokens, (0, 0, 0, 0, 0, missing)) if missing else tokens  # padding by 0 would copy


def run_blocks(
    blocks: nn.ModuleList,
    x_BNW: Tensor,
    grid: PromptGrid | None,
    *,
    start: int,
    read: Tensor | int,
    mask: Tensor | None = None,
) -> Tensor:
    """Run transformer blocks over a sequence whose positions `start … start+P` hold prompts, and read one position.

    Layer 0's prompts are already in `x_BNW`. Before each later layer i, positions whose depth exceeds i get their own
    tokens for layer i (without positional embedding or norm). With prompts, the last block computes only the position
    that is read, a twelfth less work in a tower of twelve; without, it is open_clip's own, so plain features equal
    open_clip's to the bit.

    Args:
        blocks: open_clip residual blocks.
        x_BNW: the sequence including layer 0's prompts.
        grid: the prompts, or None for the plain forward.
        start: first prompt position.
        read: the position to read, the same for all rows or one per row [B]: the result is the last layer's output
            there, [B, 1, W].
        mask: causal mask [N, N], or None for full attention.
    """
    *first, last = blocks
    for index, block in enumerate(first):
        x_BNW = block(_with_prompts(x_BNW, grid, index, start), attn_mask=mask)
    if grid is None:
        x_BNW = last(x_BNW, attn_mask=mask)
        return take_position(x_BNW, read)
    return read_block(last, _with_prompts(x_BNW, grid, len(first), start), read, is_causal=mask is not None)


def _with_prompts(x_BNW: Tensor, grid: PromptGrid | None, index: int, start: int) -> Tensor:
    """The input of a later layer, with its own tokens."""
    if grid is None or not 0 < index < grid.max_depth:
        return x_BNW
    end = start + grid.n_tokens
    own = grid.layer(index, x_BNW.shape[0]).to(x_BNW.dtype)
    if index >= grid.min_depth:
        own = torch.where((grid.depths > index).unsqueeze(-1), own, x_BNW[:, start:end])
    return torch.cat([x_BNW[:, :start], own, x_BNW[:, end:]], dim=1)
