"""Deep prompts stored among CLIP's weights, as in PromptSRC's fork of CLIP.

Layer 0 is `image_encoder.VPT` in the image tower and `prompt_learner.ctx` in the text tower; layer i > 0 is
`<tower>.transformer.resblocks.<i>.VPT_shallow`. Source: PromptSRC's repository, `clip/model.py`; IVLP and PromptKD use
the same fork.

Legend: L prompt layers, P prompt tokens, W tower width.
"""

import torch
from torch import Tensor

from prompted_clip.backbone import Backbone
from training.importing.layout import CheckpointTensors

IMAGE_PROMPTS = (
    "image_encoder.VPT [tokens, vision width]",
    "image_encoder.transformer.resblocks.<1…>.VPT_shallow [tokens, vision width]",
)
TEXT_PROMPTS = (
    "prompt_learner.ctx [tokens, text width]",
    "text_encoder.transformer.resblocks.<1…>.VPT_shallow [tokens, text width]",
)


def take_image_prompts(tensors: CheckpointTensors, backbone: Backbone) -> Tensor:
    """Image prompts [L, P, W]."""
    return _take_tower(tensors, "image_encoder.VPT", "image_encoder", backbone.vision_width, backbone.n_vision_layers)


def take_text_prompts(tensors: CheckpointTensors, backbone: Backbone) -> Tensor:
    """Text prompts [L, P, W]."""
    return _take_tower(tensors, "prompt_learner.ctx", "text_encoder", backbone.text_width, backbone.n_text_layers)


def _take_tower(tensors: CheckpointTensors, first: str, tower: str, width: int, n_layers: int) -> Tensor:
    prompts_PW = tensors.take(first, "tokens", width)
    n_tokens = tensors.count_tokens(prompts_PW)
    deeper = tensors.take_layers(f"{tower}.transformer.resblocks.{{}}.VPT_shallow", start=1, sizes=(n_tokens, width))
    if 1 + len(deeper) > n_layers:
        tensors.fail(f"{tower} has prompts for {1 + len(deeper)} layers, but the backbone's tower has {n_layers}")
    return torch.stack([prompts_PW, *deeper])
