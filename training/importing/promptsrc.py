"""PromptSRC checkpoints: prompts of both towers, averaged over epochs, and CLIP's weights with two image towers.

Source: PromptSRC's repository, `trainers/promptsrc.py`. Its Gaussian aggregation averages the whole state dict,
including frozen weights, so CLIP's weights deviate by more than float16 rounding.
"""

from typing import Final

from training.adapting.method import ExportedPrompts
from training.importing.clip_weights import AVERAGED, check_clip_weights
from training.importing.conversion import Converted, Target
from training.importing.layout import CheckpointTensors, Layout
from training.importing.token_embeddings import check_token_embeddings, default_template
from training.importing.tower_prompts import IMAGE_PROMPTS, TEXT_PROMPTS, take_image_prompts, take_text_prompts

_REFERENCE: Final = "prompt_learner.ZS_image_encoder."

LAYOUT: Final = Layout(
    method="promptsrc",
    title="a PromptSRC checkpoint",
    model_name="VLPromptLearner",
    tensors=(*TEXT_PROMPTS, *IMAGE_PROMPTS),
    matches=lambda names: "prompt_learner.ctx" in names and any(name.startswith(_REFERENCE) for name in names),
)


def convert(tensors: CheckpointTensors, target: Target) -> Converted:
    """Convert the prompts of both towers.

    Raises:
        ImportFormatError: not a PromptSRC checkpoint, or not for this backbone.
    """
    backbone = target.base_model.backbone
    text_LPW = take_text_prompts(tensors, backbone)
    image_LPW = take_image_prompts(tensors, backbone)
    notes = check_clip_weights(tensors, backbone, AVERAGED, second_image_tower=_REFERENCE)
    template, found = check_token_embeddings(
        tensors, "prompt_learner.", target, default_template(text_LPW.shape[1]), AVERAGED
    )
    tensors.finish()
    return Converted(ExportedPrompts(image_adapt=image_LPW, text_adapt=text_LPW), template, notes + found)
