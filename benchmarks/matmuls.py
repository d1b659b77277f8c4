"""A forward's matrix products and nothing else: the rate below which a forward cannot be blamed on its arithmetic.

The shapes are those of open_clip's own image tower: the patch embedding, four linear layers and the two products of
attention per block, all tokens in all blocks, and the projection. Each block has weights of its own, as in the model,
so that they do not all lie in a cache; they are packed where the served tower packs them. What lies between
the products (norms, activations, softmax, sums, copies) is left out. The wide layers are whole, as the model has them,
or cut as the served tower cuts them. As in the served tower the interpreter has no part in it on the CPU.

Legend: O outputs, I inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.fused_linear import Linears
from prompted_clip.fused_vision import parts_of, rows_at_once
from prompted_clip.internals import BlockWeights, VisionWeights
from prompted_clip.scripted import scripted


@dataclass(frozen=True)
class Products:
    """One batch's products, ready to run.

    Attributes:
        run: computes them all; on CUDA it only queues them.
        operations: multiplications and additions of one run.
    """

    run: Callable[[], object]
    operations: int


def forward_products(
    backbone: Backbone,
    n_rows: int,
    *,
    linears: Linears,
    n_prompts: int = 0,
    n_threads: int = 1,
    with_attention: bool = True,
    in_slices: bool = False,
) -> Products:
    """The products of one forward of `n_rows` images.

    On the CPU a batch is cut into the parts that the served tower cuts it into: products of larger ones are slower.

    Args:
        backbone: whose image tower, and on which device.
        n_rows: images in the batch.
        linears: how the layers are computed; everything has their type.
        n_prompts: prompt positions behind the patches.
        n_threads: on which the products will be computed together.
        with_attention: whether Q Kᵀ and the product with V count.
        in_slices: cut wide layers as the served tower does.
    """
    device = backbone.device
    weights = internals.vision_weights(backbone.clip)
    n_patches, width = weights.positions_NW.shape[0] - 1, backbone.vision_width
    n_tokens = 1 + n_patches + n_prompts
    n_hidden = len(weights.blocks[0].fc[0])
    n_part = rows_at_once(n_tokens, n_hidden, linears.dtype, n_threads=n_threads) if device.type == "cpu" else n_rows
    parts = [part.stop - part.start for part in parts_of(n_rows, n_part)]

    slices = linears.slices(n_hidden) if in_slices else [slice(0, n_hidden)]
    like = torch.empty(0, device=device, dtype=linears.dtype)
    inputs = {size: _inputs(size, n_tokens, n_prompts, weights, slices, like) for size in set(parts)}
    forward: nn.Module = _Forward(weights, slices, linears, with_attention=with_attention)
    x = inputs[parts[0]]
    given = (parts[0], x.patches, x.tokens, x.hidden, x.heads, x.scores)
    work = scripted(forward, *given) if device.type == "cpu" else forward

    @torch.inference_mode()
    def run() -> None:
        for size in parts:
            x = inputs[size]
            work(size, x.patches, x.tokens, x.hidden, x.heads, x.scores)

    weights_read = sum(
        weight.numel() for block in weights.blocks for weight, _ in (block.qkv, block.out, block.fc, block.proj)
    )
    attention = 2 * n_tokens * width * len(weights.blocks) if with_attention else 0
    ends = n_patches * weights.patch_WCPP.numel() + weights.projection_WE.numel()
    return Products(run, 2 * n_rows * (n_tokens * (weights_read + attention) + ends))


class _Forward(nn.Module):
    """All products of one part."""

    def __init__(self, weights: VisionWeights, slices: list[slice], linears: Linears, *, with_attention: bool) -> None:
        super().__init__()
        self._embed = _linear(weights.patch_WCPP.flatten(1), linears)
        self._blocks = nn.ModuleList(_Block(block, slices, linears, with_attention) for block in weights.blocks)
        self._project = _linear(weights.projection_WE.T, linears)

    def forward(
        self, n_rows: int, patches: Tensor, tokens: Tensor, hidden: list[Tensor], heads: Tensor, scores: Tensor
    ) -> Tensor:
        _note(self._embed(patches))
        for block in self._blocks:
            block(tokens, hidden, heads, scores)
        return self._project(tokens[:n_rows])  # type: ignore[no-any-return]


class _Block(nn.Module):
    """The products of a block, each over inputs of its own."""

    def __init__(self, weights: BlockWeights, slices: list[slice], linears: Linears, with_attention: bool) -> None:
        super().__init__()
        self._with_attention = with_attention
        self._qkv, self._out = _linear(weights.qkv[0], linears), _linear(weights.out[0], linears)
        self._slices = nn.ModuleList(_Slice(weights, part, linears) for part in slices)

    def forward(self, tokens: Tensor, hidden: list[Tensor], heads: Tensor, scores: Tensor) -> None:
        _note(self._qkv(tokens))
        if self._with_attention:
            _note(torch.bmm(heads, heads.transpose(1, 2)))
            _note(torch.bmm(scores, heads))
        _note(self._out(tokens))
        for index, part in enumerate(self._slices):
            part(tokens, hidden[index])


class _Slice(nn.Module):
    """The two products of a slice of the MLP."""

    def __init__(self, weights: BlockWeights, part: slice, linears: Linears) -> None:
        super().__init__()
        self._fc, self._proj = _linear(weights.fc[0][part], linears), _linear(weights.proj[0][:, part], linears)

    def forward(self, tokens: Tensor, hidden: Tensor) -> None:
        _note(self._fc(tokens))
        _note(self._proj(hidden))


def _note(product: Tensor) -> None:
    """Read a product's size: TorchScript leaves out what nobody reads."""
    if len(product) == 0:
        raise ValueError("empty")


def _linear(weight_OI: Tensor, linears: Linears) -> nn.Module:
    return linears.layer(weight_OI, weight_OI.new_zeros(len(weight_OI)))


@dataclass(frozen=True)
class _Inputs:
    """What the products of a part read."""

    patches: Tensor
    tokens: Tensor
    hidden: list[Tensor]
    heads: Tensor
    scores: Tensor


def _inputs(
    n_rows: int, n_tokens: int, n_prompts: int, weights: VisionWeights, slices: list[slice], like: Tensor
) -> _Inputs:
    (block, *_) = weights.blocks
    width = block.fc[0].shape[1]
    n_patches = n_tokens - 1 - n_prompts

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, device=like.device).to(like.dtype)

    return _Inputs(
        patches=noise(n_rows * n_patches, weights.patch_WCPP[0].numel()),
        tokens=noise(n_rows * n_tokens, width),
        hidden=[noise(n_rows * n_tokens, part.stop - part.start) for part in slices],
        heads=noise(n_rows * block.n_heads, n_tokens, width // block.n_heads),
        scores=noise(n_rows * block.n_heads, n_tokens, n_tokens),
    )
