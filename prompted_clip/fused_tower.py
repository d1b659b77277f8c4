"""The served image tower: `vision.embed_image` from uint8 pixels, in fewer and larger steps over frozen weights.

Training and the reference stay with open_clip's modules; here only what gains more than 5 % on ViT-B-16 is different:
oneDNN layers with prepacked weights and fused activations and residual sums (bfloat16 on a CPU needs them, float32 on
AVX-512 is 1.2 times as fast); the last block computes the class token only (8 % of the operations); the MLP runs in
slices of 1,024 hidden units in bfloat16 (7 % with AMX, oneDNN is slow with 3,072 inputs); TorchScript on the CPU, whose
forward does not take the GIL at each of 200 steps (30 % beside a busy Python thread); and microbatches near the cache.

Legend: B rows, C/H/W image, P prompt positions, D prompt layers, N tokens of a row, M all rows' tokens, W tower width,
H heads, E joint width.
"""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompted_clip import internals
from prompted_clip.backbone import Backbone
from prompted_clip.frozen_linear import MakeLinear, make_linear, packs
from prompted_clip.internals import BlockWeights
from prompted_clip.prompts import PromptGrid
from prompted_clip.vision import ImageTower

logger = logging.getLogger(__name__)

MICROBATCH_BYTES: Final = 10 * 2**20
"""Bytes of a microbatch's widest layer per CPU thread: eight images of ViT-B-16 in bfloat16."""
MAX_MICROBATCH_BYTES: Final = 24 * 2**20
"""Of all threads together: larger tensors are mapped and unmapped by the allocator each time."""
MAX_INPUTS: Final = 1024
QUICK: Final = 1.702
"""QuickGELU is x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""


class Norm(nn.Module):
    """A LayerNorm; torch computes it in float32 for narrower dtypes."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self._scale_W, self._shift_W = norm.weight.detach().to(dtype), norm.bias.detach().to(dtype)
        self._eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype."""
        return F.layer_norm(x, self._scale_W.shape, self._scale_W, self._shift_W, self._eps)


class Mlp(nn.Module):
    """x + proj(activation(fc(ln_2(x)))) over tokens [M, W], the hidden layer in slices.

    Slices are summed before x is added: x has the larger numbers, and rounding it once per slice would add error.
    """

    def __init__(self, weights: BlockWeights, linear: MakeLinear, dtype: torch.dtype, max_inputs: int) -> None:
        super().__init__()
        self._norm = Norm(weights.ln_2, dtype)
        (fc_weight, fc_bias), (proj_weight, proj_bias) = weights.fc, weights.proj
        kind, fused = weights.activation_kind, weights.activation_kind != "other"
        if kind == "quick_gelu":
            fc_weight, fc_bias, proj_weight = fc_weight * QUICK, fc_bias * QUICK, proj_weight / QUICK
        self._activation = None if fused else weights.activation
        n_inputs = min(max_inputs, len(fc_bias)) if fused else len(fc_bias)  # an unknown one may mix its inputs
        slices = [slice(start, start + n_inputs) for start in range(0, len(fc_bias), n_inputs)]
        name = {"gelu": "gelu", "quick_gelu": "silu", "other": "none"}[kind]
        self._fcs = nn.ModuleList([linear(fc_weight[part], fc_bias[part], name) for part in slices])
        no_bias = torch.zeros_like(proj_bias)
        biases = [no_bias if part.start else proj_bias for part in slices]
        projs = [linear(proj_weight[:, part], bias) for part, bias in zip(slices, biases, strict=True)]
        self._projs = nn.ModuleList(projs)

    def forward(self, x_MW: Tensor) -> Tensor:
        """[M, W]."""
        normed_MW = self._norm(x_MW)
        sum_MW: Tensor | None = x_MW if len(self._fcs) == 1 else None
        for fc, proj in zip(self._fcs, self._projs):  # noqa: B905  TorchScript knows no `strict`
            hidden = fc(normed_MW)
            if self._activation is not None:
                hidden = self._activation(hidden)
            sum_MW = proj(hidden, sum_MW)
        assert sum_MW is not None  # noqa: S101  for TorchScript
        return sum_MW if len(self._fcs) == 1 else sum_MW.add_(x_MW)


class Block(nn.Module):
    """A residual block over all tokens, or over all keys and the class token's query in the last one."""

    def __init__(
        self, weights: BlockWeights, linear: MakeLinear, dtype: torch.dtype, max_inputs: int, *, is_last: bool
    ) -> None:
        super().__init__()
        self._n_heads, self._is_last = weights.n_heads, is_last
        self._norm = Norm(weights.ln_1, dtype)
        weight, bias = weights.qkv
        width = weight.shape[1]
        n_query = width if is_last else 0
        self._q = linear(weight[:n_query], bias[:n_query]) if is_last else None
        self._qkv = linear(weight[n_query:], bias[n_query:])
        self._out = linear(*weights.out)
        self._mlp = Mlp(weights, linear, dtype, max_inputs)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """[B, N, W], or [B, 1, W] from the last block."""
        n_rows, n_tokens, width = x_BNW.shape
        normed_BNW = self._norm(x_BNW)
        parts_3BHNC = self._qkv(normed_BNW.view(-1, width)).view(
            n_rows, n_tokens, -1, self._n_heads, width // self._n_heads
        )
        parts_3BHNC = parts_3BHNC.permute(2, 0, 3, 1, 4)
        q_BHNC = parts_3BHNC[0]
        if self._q is not None:
            q_BHNC = self._q(normed_BNW[:, 0]).view(n_rows, self._n_heads, 1, -1)
            x_BNW = x_BNW[:, :1]
        attended_BHNC = F.scaled_dot_product_attention(q_BHNC, parts_3BHNC[-2], parts_3BHNC[-1])
        attended_MW = attended_BHNC.transpose(1, 2).reshape(-1, width)
        x_MW = self._out(attended_MW, x_BNW.reshape(-1, width))
        return self._mlp(x_MW).view(n_rows, -1, width)


class ImageSteps(nn.Module):
    """One forward over tensors only, for TorchScript and CUDA graphs."""

    def __init__(self, backbone: Backbone, linear: MakeLinear, max_inputs: int) -> None:
        super().__init__()
        weights, dtype = internals.vision_weights(backbone.clip), backbone.dtype
        precise = torch.promote_types(dtype, torch.float32)
        self._patch: int = weights.patch_WCPP.shape[-1]
        self._side = backbone.image_size // self._patch
        # w · (x / 255 - mean) / std = w' · x - w' · 255 mean. uint8 is exact in bfloat16, and the bias is computed from
        # the rounded weights, so pixels near the mean lose no precision.
        mean, std = (
            torch.tensor(backbone.preprocess[name], device=weights.class_W.device, dtype=precise).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        patch_WCPP = (weights.patch_WCPP.detach().to(precise) / (255 * std)).to(dtype)
        bias_W = -(patch_WCPP.to(precise) * (255 * mean)).flatten(1).sum(dim=1)
        self._embed = linear(patch_WCPP.flatten(1), bias_W)
        positions_NW = weights.positions_NW.detach().to(precise).clone()
        positions_NW[0] += weights.class_W
        positions_NW[1:] += bias_W - bias_W.to(dtype)
        self._positions_NW = positions_NW
        self._ln_pre = Norm(weights.ln_pre, dtype) if weights.ln_pre else None
        *first, last = weights.blocks
        self._blocks = nn.ModuleList([Block(block, linear, dtype, max_inputs, is_last=False) for block in first])
        self._last = Block(last, linear, dtype, max_inputs, is_last=True)
        self._ln_post = Norm(weights.ln_post, precise)
        self._projection_WE = weights.projection_WE.detach().to(precise)
        self._like = positions_NW.new_empty(0, dtype=dtype)

    def forward(self, pixels_BCHW: Tensor, tokens: Tensor | None, depths: Tensor | None) -> Tensor:
        """Embeddings [B, E] from uint8 pixels, prompt tokens [D, P, W] or [B, D, P, W], and depths [P] or [B, P]."""
        x_BNW = self._image_tokens(pixels_BCHW)
        start = x_BNW.shape[1]
        if tokens is not None:
            x_BNW = torch.cat([x_BNW, tokens[..., 0, :, :].expand(len(x_BNW), -1, -1)], dim=1)
        if self._ln_pre is not None:
            x_BNW = self._ln_pre(x_BNW)
        for index, block in enumerate(self._blocks):
            self._put_prompts(x_BNW[:, start:], tokens, depths, index)
            x_BNW = block(x_BNW)
        self._put_prompts(x_BNW[:, start:], tokens, depths, len(self._blocks))
        class_BW = self._last(x_BNW).squeeze(1)
        return self._ln_post(class_BW.to(self._projection_WE.dtype)) @ self._projection_WE

    def _put_prompts(self, x_BPW: Tensor, tokens: Tensor | None, depths: Tensor | None, index: int) -> None:
        """Overwrite the outputs of block index - 1 at positions that have tokens of their own for this block."""
        if tokens is not None and depths is not None and index > 0 and index < tokens.shape[-3]:
            x_BPW.copy_(torch.where((depths > index).unsqueeze(-1), tokens[..., index, :, :], x_BPW))

    def _image_tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Class token and patches with positions: [B, N, W]."""
        n_rows, side, patch = len(pixels_BCHW), self._side, self._patch
        n_plain, width = self._positions_NW.shape
        whole = pixels_BCHW[..., : side * patch, : side * patch]
        strips = whole.reshape(n_rows, -1, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        patches = self._like.new_empty(strips.shape).copy_(strips)
        embedded = self._embed(patches.view(n_rows * side * side, -1)).view(n_rows, side * side, width)
        x_BNW = embedded.new_empty(n_rows, n_plain, width)
        x_BNW[:, 0] = self._positions_NW[0]
        x_BNW[:, 1:] = embedded + self._positions_NW[1:]
        return x_BNW


class FusedImageTower(ImageTower):
    """The fused tower; thread-safe.

    Args:
        backbone: the weights, copied; later changes to the backbone have no effect.
        packed: use oneDNN's prepacked layers; None if they support the device and dtype.
    """

    def __init__(self, backbone: Backbone, *, packed: bool | None = None) -> None:
        super().__init__(backbone)
        packed = packs(backbone.device, backbone.dtype) if packed is None else packed
        linear = partial(make_linear, dtype=backbone.dtype, packed=packed)
        is_slow_when_wide = packed and backbone.dtype is torch.bfloat16
        hidden = internals.vision_weights(backbone.clip).blocks[0].fc[0]
        with torch.no_grad():
            steps = ImageSteps(backbone, linear, MAX_INPUTS if is_slow_when_wide else len(hidden))
        self._steps: Callable[..., Tensor] = steps
        if backbone.device.type == "cpu":
            grey = torch.full((1, 3, backbone.image_size, backbone.image_size), 128, dtype=torch.uint8)
            self._steps = scripted(steps, grey, None, None)
        self._n_plain = len(backbone.clip.visual.positional_embedding)
        self._token_bytes = len(hidden) * backbone.dtype.itemsize

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, grid: PromptGrid | None = None) -> Tensor:
        """See `ImageTower`; [B, E], float32 for narrower backbones."""
        tokens, depths = (grid.tokens, grid.depths) if grid is not None else (None, None)
        n_rows, n_parts = len(pixels_BCHW), 1
        if pixels_BCHW.device.type == "cpu":
            n_parts = -(-n_rows // self.max_microbatch(grid.n_tokens if grid else 0, torch.get_num_threads()))
        if n_parts == 1:
            return self._steps(pixels_BCHW, tokens, depths)
        edges = [index * n_rows // n_parts for index in range(n_parts + 1)]  # of nearly equal size
        outputs = []
        for part in map(slice, edges, edges[1:]):
            own = grid.rows(part) if grid is not None else None
            outputs.append(self._steps(pixels_BCHW[part], own and own.tokens, own and own.depths))
        return torch.cat(outputs)

    def max_microbatch(self, n_prompts: int, n_threads: int) -> int:
        """See `ImageTower`; at least one."""
        n_bytes = min(MICROBATCH_BYTES * n_threads, MAX_MICROBATCH_BYTES)
        return max(1, n_bytes // ((self._n_plain + n_prompts) * self._token_bytes))


def scripted(module: nn.Module, *example: object) -> Callable[..., Tensor]:
    """A frozen module as TorchScript, or the module itself if TorchScript does not support it.

    Args:
        module: `forward` returns one tensor.
        example: arguments of a trial run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated: see docs/decisions/0017
            script = torch.jit.script(module)

        def run(*args: object) -> Tensor:
            # The optimizing executor would rewrite the graph during the first forwards.
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                output: Tensor = script(*args)
            return output

        with torch.inference_mode():
            run(*example)
    except Exception:
        # Slower, not wrong: an activation that TorchScript cannot compile, or a torch without it.
        logger.warning("module.not_scripted", exc_info=True)
        return module
    return run
