"""MaPLe checkpoints: text prompts, linear couplings to image prompts, and CLIP's weights.

Source: MaPLe's repository, `trainers/maple.py`; couplings: arXiv 2210.03117, section 3.

Legend: L prompt layers, P prompt tokens, V vision width, W text width.
"""

from typing import Final

import torch
from torch import Tensor

from training.adapting.method import ExportedPrompts
from training.importing.clip_weights import FLOAT16, check_clip_weights
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.token_embeddings import check_token_embeddings, default_template

_LEARNER: Final = "prompt_learner."

LAYOUT: Final = Layout(
    method="maple",
    title="a MaPLe checkpoint",
    model_name="MultiModalPromptLearner",
    tensors=(
        "prompt_learner.ctx [tokens, text width]",
        "prompt_learner.proj.weight [vision width, text width], .bias [vision width]",
        "prompt_learner.compound_prompts_text.<0…> [tokens, text width]",
        "prompt_learner.compound_prompt_projections.<0…>.weight [vision width, text width], .bias [vision width]",
    ),
    matches=lambda names: {"prompt_learner.ctx", "prompt_learner.proj.weight"} <= names,
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert the prompts of both towers, with the couplings applied.

    Raises:
        ImportFormatError: not a MaPLe checkpoint, or not for this backbone.
    """
    backbone = target.base_model.backbone
    vision, width = backbone.vision_width, backbone.text_width
    context_PW = tensors.take(f"{_LEARNER}ctx", "tokens", width)
    n_tokens = tensors.count_tokens(context_PW)
    deeper, weights, biases = (
        tensors.take_layers(f"{_LEARNER}{name}", start=0, sizes=sizes)
        for name, sizes in (
            ("compound_prompts_text.{}", (n_tokens, width)),
            ("compound_prompt_projections.{}.weight", (vision, width)),
            ("compound_prompt_projections.{}.bias", (vision,)),
        )
    )
    if not len(deeper) == len(weights) == len(biases):
        tensors.fail(f"{len(deeper)} deeper prompts have {len(weights)} couplings with {len(biases)} biases")
    text_LPW = torch.stack([context_PW, *deeper])
    weights.insert(0, tensors.take(f"{_LEARNER}proj.weight", vision, width))
    biases.insert(0, tensors.take(f"{_LEARNER}proj.bias", vision))
    image_LPV = torch.stack([_couple(*layer) for layer in zip(text_LPW, weights, biases, strict=True)])
    notes = check_clip_weights(tensors, backbone, FLOAT16)
    template, found = check_token_embeddings(tensors, _LEARNER, target, default_template(n_tokens), FLOAT16)
    tensors.finish()
    # The towers may differ in depth; prompts beyond a tower's layers are unused.
    exported = ExportedPrompts(
        image_adapt=image_LPV[: backbone.n_vision_layers], text_adapt=text_LPW[: backbone.n_text_layers]
    )
    return Converted(exported, template, notes + found)


def _couple(prompts_PW: Tensor, weight_VW: Tensor, bias_V: Tensor) -> Tensor:
    """One layer's image prompts [P, V], computed in float64 and rounded once."""
    return (prompts_PW.double() @ weight_VW.double().T + bias_V.double()).float()
