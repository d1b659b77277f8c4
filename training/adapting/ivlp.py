"""IVLP: independent deep prompts in both towers, learned by cross-entropy.

The baseline that MaPLe (arXiv 2210.03117) compares with and that PromptSRC (arXiv 2307.06948) starts from:

    L = CE(z, y),   z_c = s · <f(x; V), g_c(T)>

It knows the prompts and their loss; it does not know how it is trained.

Legend: B rows, K classes, L prompt layers, P prompt tokens, E joint width.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from prompted_clip.internals import unit_norm
from training.adapting.deep_prompts import deep_image_prompts, deep_text_prompts
from training.adapting.method import Batch, Folded, ParameterGroup, Want, detached, wanted
from training.foundation import Foundation
from training.recipe import AdaptRecipe
from training.scores import class_scores


class IVLPRecipe(AdaptRecipe):
    """Values of PromptSRC's repository for base-to-new: 4 + 4 tokens, 9 layers, 20 epochs of batches of 4."""

    learning_rate: float = Field(default=0.0025, gt=0)
    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    image_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the image tower")
    image_depth: int = Field(default=9, ge=1, description="layers with own image tokens, cut to the tower's")
    text_tokens: int = Field(default=4, ge=1, le=64, description="prompt tokens per layer in the text tower")
    text_depth: int = Field(default=9, ge=1, description="layers with own text tokens, cut to the tower's")
    text_init: str = Field(
        default="a photo of a", description="words for text layer 0; words beyond text_tokens stay words"
    )


class IVLP(nn.Module):
    """Independent prompts V [L, P, vision width] and T [L, P, text width].

    Args:
        foundation: the frozen CLIP, boosted or plain.
        class_names: K names.
        recipe: counts, depths, initial words and seed.

    Raises:
        TextTooLongError: a class name does not fit together with the prompts.
    """

    wants: ClassVar[frozenset[Want]] = frozenset({"pixels"})
    averages_over_images: ClassVar[bool] = True

    def __init__(self, foundation: Foundation, class_names: Sequence[str], recipe: IVLPRecipe) -> None:
        super().__init__()
        self.foundation = foundation
        generator = torch.Generator().manual_seed(recipe.seed)
        self.text_prompts, self.text = deep_text_prompts(
            foundation.backbone, recipe.text_depth, recipe.text_tokens, recipe.text_init, generator
        )
        self.image_prompts = deep_image_prompts(foundation.backbone, recipe.image_depth, recipe.image_tokens, generator)
        self.tokens = foundation.tokenize(class_names, self.text, n_prompts=recipe.text_tokens)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Both towers' prompts, at the recipe's rate."""
        return [ParameterGroup([self.text_prompts, self.image_prompts])]

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image [B, E] and text [K, E] embeddings under the prompts, before they are brought to length 1."""
        images_BCHW = wanted(batch.images_BCHW, "pixels")
        return (
            self.foundation.embed_images(images_BCHW, self.image_prompts),
            self.foundation.embed_text(self.tokens, self.text_prompts),
        )

    def logits(self, batch: Batch) -> Tensor:
        """Z, s · <f, g>: [B, K]."""
        image_BE, text_KE = self.embed(batch)
        return class_scores(self.foundation.logit_scale, unit_norm(image_BE), unit_norm(text_KE))

    def loss(self, batch: Batch) -> Tensor:
        """CE(z, y)."""
        return nn.functional.cross_entropy(self.logits(batch), batch.labels_B)

    def end_epoch(self, epoch: int) -> None:
        """Nothing is averaged over epochs."""

    def fold(self) -> Folded:
        """Both groups as they are."""
        return Folded(image_adapt=detached(self.image_prompts), text_adapt=detached(self.text_prompts))
