"""VPT: deep image prompts and frozen text features, trained with cross-entropy.

Visual Prompt Tuning, deep variant (arXiv 2203.12119, section 3.2), on CLIP, as the VPT baseline in MaPLe's repository:
text features come from one hand-written template and the frozen text tower.

    L = CE(z, y),   z_c = s · <f(x; V), g_c>

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.adapting.deep_prompts import deep_image_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.reference import TemplateRecipe, class_template
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores


class VPTRecipe(TemplateRecipe):
    """The image prompts of IVLP with IVLP's training settings (PromptSRC's repository), for comparison.

    MaPLe's repository runs its VPT baseline with `image_tokens=8 image_depth=12 epochs=5`.
    """

    learning_rate: float = Field(default=0.0025, gt=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    image_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the image tower")
    image_depth: int = Field(default=9, ge=1, description="layers with their own image tokens, at most the tower's")


class VPT(nn.Module):
    """Image prompts V [L, P, vision width].

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: count, depth, template and seed.

    Raises:
        TextTooLongError: a class name in the template exceeds the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True
    text_KE: Tensor

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: VPTRecipe) -> None:
        super().__init__()
        self.base_model = base_model
        self.template = class_template(base_model, recipe)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.image_prompts = deep_image_prompts(base_model.backbone, recipe.image_depth, recipe.image_tokens, generator)
        text_KE = base_model.zero_shot_text(class_names, [self.template])
        self.register_buffer("text_KE", text_KE, persistent=False)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The image prompts, at the recipe's rate."""
        return [ParameterGroup([self.image_prompts])]

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f, g> with frozen g: [B, K]."""
        features_BE = self.base_model.encode_images(required_input(batch.images_BCHW, "images"), self.image_prompts)
        return class_scores(self.base_model.logit_scale, features_BE, self.text_KE)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """The image prompts; text features are frozen."""
        return ExportedPrompts(image_adapt=detached(self.image_prompts))
