"""The modules of open_clip that a prompted forward uses; only `fused_tower.py` also reads open_clip's internals.

When open_clip moves one of them, `tests/prompted_clip/test_internals.py` fails with its name.

Legend: B rows, C/H/W image, N tokens, T text tokens, D or W tower width, E joint width, K texts.
"""

from typing import Any, Literal, NamedTuple, cast

import torch
from open_clip.model import CLIP
from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from prompted_clip.errors import WeightsError


def check_supported(model: nn.Module, arch: str) -> CLIP:
    """Return `model` as a CLIP whose towers take prompts.

    Raises:
        WeightsError: the model is no ViT CLIP with a causal, EOT-pooled text tower (CoCa, SigLIP, ResNet, timm, HF …).
    """
    problem = _unsupported_part(model)
    if problem:
        msg = (
            f"Backbone {arch!r} does not support prompts: {problem}. "
            "Expected an open_clip ViT CLIP such as ViT-B-16, ViT-L-14 or their -quickgelu variants."
        )
        raise WeightsError(msg)
    return cast("CLIP", model)


def _unsupported_part(model: nn.Module) -> str | None:
    if not isinstance(model, CLIP):
        return f"it is a {type(model).__name__}, not a CLIP with a built-in text tower"
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        return f"its image tower is a {type(visual).__name__}, not a VisionTransformer"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its image tower does not pool the class token"
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        return "its text tower is not causal with EOT pooling"
    blocks = [*visual.transformer.resblocks, *model.transformer.resblocks]
    if not all(isinstance(block, ResidualAttentionBlock) for block in blocks):
        return "its transformer blocks are not open_clip's plain residual attention blocks"
    if not (visual.transformer.batch_first and model.transformer.batch_first):
        return "its transformers expect the batch on the second axis"
    return None


def architecture_facts(clip: CLIP) -> dict[str, Any]:
    """Facts besides the weights that change a CLIP's outputs, as JSON values."""
    visual: Any = vision_blocks(clip)[0]
    text: Any = text_blocks(clip)[0]
    return {
        "image_size": list(clip.visual.image_size),
        "patch_size": list(clip.visual.patch_size),
        "vision_heads": visual.attn.num_heads,
        "text_heads": text.attn.num_heads,
        "quick_gelu": isinstance(visual.mlp.gelu, QuickGELU),
        "context_length": clip.context_length,
    }


class BlockWeights(NamedTuple):
    """A residual block: x + out(attention(qkv(ln_1(x)))), then x + proj(activation(fc(ln_2(x)))).

    Linear layers are (weight [O, I], bias [O]); layer scale is multiplied into `out` and `proj`. `activation_kind` is
    the function of `activation`: x Φ(x), x sigmoid(1.702 x), or another one.
    """

    n_heads: int
    ln_1: nn.LayerNorm
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    ln_2: nn.LayerNorm
    fc: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    activation: nn.Module
    activation_kind: Literal["gelu", "quick_gelu", "other"]


def block_weights(block: Any) -> BlockWeights:  # noqa: ANN401  torch does not type a module's parts
    """A block's weights, for another implementation of its forward."""
    attention, mlp = block.attn, block.mlp
    is_gelu = isinstance(mlp.gelu, nn.GELU) and mlp.gelu.approximate == "none"
    return BlockWeights(
        n_heads=attention.num_heads,
        ln_1=block.ln_1,
        qkv=(attention.in_proj_weight, attention.in_proj_bias),
        out=_scaled(attention.out_proj, block.ls_1),
        ln_2=block.ln_2,
        fc=(mlp.c_fc.weight, mlp.c_fc.bias),
        proj=_scaled(mlp.c_proj, block.ls_2),
        activation=mlp.gelu,
        activation_kind="quick_gelu" if isinstance(mlp.gelu, QuickGELU) else "gelu" if is_gelu else "other",
    )


def _scaled(linear: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor]:
    """A linear layer's weight and bias, multiplied by the layer scale that follows it."""
    if not isinstance(scale, LayerScale):
        return linear.weight, linear.bias
    return linear.weight * scale.gamma.unsqueeze(1), linear.bias * scale.gamma


def matrix_weights(clip: CLIP) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The parameters that only matrix products and their biases read: owner, name in it, parameter.

    Without the one whose dtype open_clip takes as that of the text tower's tokens.
    """
    decides_dtype: Any = clip.transformer.resblocks[0]
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    owners = [module for module in clip.modules() if isinstance(module, kinds)]
    weights = [(owner, name, weight) for owner in owners for name, weight in owner.named_parameters(recurse=False)]
    weights += [(clip.visual, "proj", clip.visual.proj)]
    if isinstance(clip.text_projection, nn.Parameter):
        weights.append((clip, "text_projection", clip.text_projection))
    return [found for found in weights if found[2] is not decides_dtype.mlp.c_fc.weight]


def embed_patches(clip: CLIP, images_BCHW: Tensor) -> Tensor:
    """Class token and patches with positions, after `ln_pre`: [B, N, D]."""
    return cast("Tensor", clip.visual._embeds(images_BCHW))


def norm_image_prompts(clip: CLIP, prompts: Tensor) -> Tensor:
    """`ln_pre` over layer-0 image prompts [..., D]."""
    return cast("Tensor", clip.visual.ln_pre(prompts))


def vision_blocks(clip: CLIP) -> nn.ModuleList:
    """The image tower's blocks, first to last."""
    return cast("nn.ModuleList", clip.visual.transformer.resblocks)


def take_position(x_BNW: Tensor, at: Tensor | int) -> Tensor:
    """The tokens at one position, the same for all rows or one per row [B]: [B, 1, W]."""
    if isinstance(at, int):
        return x_BNW[:, at : at + 1]  # a slice: exported graphs run on devices without gathers
    return x_BNW[torch.arange(x_BNW.shape[0], device=x_BNW.device), at].unsqueeze(1)


def read_block(block: Any, x_BNW: Tensor, at: Tensor | int, *, is_causal: bool) -> Tensor:  # noqa: ANN401  as above
    """A residual block's output at one position, [B, 1, W]; it attends to all or to the earlier positions."""
    read_B1W = take_position(x_BNW, at)
    keys_BNW, query_B1W = block.ln_1(x_BNW), block.ln_1(read_B1W)
    hidden_BN = None
    if is_causal:
        at_B1 = torch.as_tensor(at, device=x_BNW.device).expand(x_BNW.shape[0]).unsqueeze(1)
        hidden_BN = torch.arange(x_BNW.shape[1], device=x_BNW.device) > at_B1
    attended_B1W, _ = block.attn(query_B1W, keys_BNW, keys_BNW, key_padding_mask=hidden_BN, need_weights=False)
    read_B1W = read_B1W + block.ls_1(attended_B1W)
    return cast("Tensor", read_B1W + block.ls_2(block.mlp(block.ln_2(read_B1W))))


def project_image(clip: CLIP, x_BND: Tensor) -> Tensor:
    """`ln_post` and projection of the class token: [B, E], not normalised."""
    pooled, _ = clip.visual._pool(x_BND)
    return cast("Tensor", pooled @ clip.visual.proj)


def embed_tokens(clip: CLIP, tokens_KT: Tensor) -> Tensor:
    """Token embeddings without positions: [K, T, D]."""
    return cast("Tensor", clip.token_embedding(tokens_KT)).to(clip.transformer.get_cast_dtype())


def add_positions(clip: CLIP, x_KTD: Tensor) -> Tensor:
    """Add the first T positional embeddings."""
    positions_TD = cast("Tensor", clip.positional_embedding)[: x_KTD.shape[1]]
    return x_KTD + positions_TD.to(x_KTD.dtype)


def text_blocks(clip: CLIP) -> nn.ModuleList:
    """The text tower's blocks, first to last."""
    return cast("nn.ModuleList", clip.transformer.resblocks)


def causal_mask(clip: CLIP, n_tokens: int) -> Tensor:
    """The additive causal mask of the first `n_tokens` positions: [T, T]."""
    return cast("Tensor", clip.attn_mask)[:n_tokens, :n_tokens]


def project_text(clip: CLIP, eot_KD: Tensor) -> Tensor:
    """`ln_final` and projection of the EOT token: [K, E], not normalised."""
    pooled, projection = clip.ln_final(eot_KD), clip.text_projection
    return cast("Tensor", projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection)


def unit_norm(features: Tensor) -> Tensor:
    """Normalise features to length 1 along the last axis, in float32 (float64 stays float64)."""
    return nn.functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
