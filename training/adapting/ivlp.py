"""IVLP: independent deep prompts in both towers, trained with cross-entropy.

The baseline of MaPLe (arXiv 2210.03117) and starting point of PromptSRC (arXiv 2307.06948):

    L = CE(z, y),   z_c = s · <f(x; V), g_c(T)>

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.attributes import AttributePrefix, AttributeRecipe
from training.adapting.deep_prompts import DeepPromptRecipe, deep_image_prompts, deep_text_prompts
from training.adapting.method import Batch, ExportedPrompts, Input, detached, required_input
from training.adapting.unfrozen import LearnableBoostingRecipe, unfreeze, with_trained_boosting
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.scores import class_scores


class IVLPRecipe(DeepPromptRecipe, LearnableBoostingRecipe, AttributeRecipe):
    """The values of PromptSRC's repository for base-to-new."""


class IVLP(nn.Module):
    """Independent prompts V [L, P, vision width] and T [L, P, text width].

    Args:
        base_model: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: counts, depths, initial words and seed.

    Raises:
        TextTooLongError: a class name and the prompts exceed the text tower's context length.
    """

    required_inputs: ClassVar[frozenset[Input]] = frozenset({"images"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, base_model: PromptedBackbone, class_names: Sequence[str], recipe: IVLPRecipe) -> None:
        super().__init__()
        self.base_model, self.boosting = unfreeze(base_model, recipe)
        generator = torch.Generator().manual_seed(recipe.seed)
        self.text_prompts, self.template = deep_text_prompts(
            base_model.backbone, recipe.text_depth, recipe.text_tokens, recipe.text_init, generator
        )
        self.image_prompts = deep_image_prompts(base_model.backbone, recipe.image_depth, recipe.image_tokens, generator)
        self.attributes = AttributePrefix(base_model.backbone, recipe, generator)
        n_prompts = self.attributes.n_tokens(recipe.text_tokens)
        self.tokens = base_model.tokenize(class_names, self.template, n_prompts=n_prompts)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """All parameters, at the recipe's rate."""
        return [ParameterGroup(list(self.parameters()))]

    def prompt(self) -> Tensor:
        """The text prompts with the attributes in front of them."""
        return self.attributes.before(self.text_prompts)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unnormalised image embeddings [B, E] and text embeddings [K, E]."""
        images_BCHW = required_input(batch.images_BCHW, "images")
        return (
            self.base_model.embed_images(images_BCHW, self.image_prompts),
            self.base_model.embed_text(self.tokens, self.prompt()),
        )

    def logits(self, batch: Batch) -> Tensor:
        """Class scores z = s · <f, g>: [B, K]."""
        image_BE, text_KE = self.embed(batch)
        return class_scores(self.base_model.logit_scale, unit_norm(image_BE), unit_norm(text_KE))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the batch, float32."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """No-op."""

    def fold(self) -> ExportedPrompts:
        """Both prompt groups, unchanged."""
        own = ExportedPrompts(image_adapt=detached(self.image_prompts), text_adapt=detached(self.prompt()))
        return with_trained_boosting(own, self.base_model, self.boosting)
