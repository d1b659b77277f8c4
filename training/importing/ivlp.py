"""IVLP checkpoints: independent prompts in both towers or in the text tower alone, and CLIP's weights.

Source: MaPLe's and PromptSRC's repositories, `trainers/independentVL.py`.
"""

from typing import Final

from training.adapting.method import ExportedPrompts
from training.importing.clip_weights import FLOAT16, check_clip_weights
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.token_embeddings import check_token_embeddings, default_template
from training.importing.tower_prompts import IMAGE_PROMPTS, TEXT_PROMPTS, take_image_prompts, take_text_prompts

LAYOUT: Final = Layout(
    method="ivlp",
    title="an IVLP checkpoint",
    model_name="VLPromptLearner",
    tensors=(*TEXT_PROMPTS, *IMAGE_PROMPTS),
    matches=lambda names: "prompt_learner.ctx" in names and any("VPT" in name for name in names),
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert the prompts of both towers.

    Raises:
        ImportFormatError: not an IVLP checkpoint, or not for this backbone.
    """
    backbone = target.base_model.backbone
    text_LPW = take_text_prompts(tensors, backbone)
    image_LPW = take_image_prompts(tensors, backbone) if "image_encoder.VPT" in tensors else None
    notes = check_clip_weights(tensors, backbone, FLOAT16)
    template, found = check_token_embeddings(
        tensors, "prompt_learner.", target, default_template(text_LPW.shape[1]), FLOAT16
    )
    tensors.finish()
    return Converted(ExportedPrompts(image_adapt=image_LPW, text_adapt=text_LPW), template, notes + found)
