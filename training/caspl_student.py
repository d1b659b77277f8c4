"""CasPL's student: the frozen backbone with deep boosting prompts in both towers.

Source: CasPL (arXiv 2409.17805), section 3.2.
Legend: B images, K classes, E joint width, L prompt layers, P prompt tokens, W tower width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from training.adapting.method import ExportedPrompts
from training.initial_prompts import check_words, random_prompts, word_states
from training.loop import ParameterGroup
from training.prompted_backbone import PromptedBackbone
from training.recipe import BoostRecipe
from training.scores import class_scores


class CasplStudent(nn.Module):
    """Trainable boosting prompts in both towers.

    Args:
        backbone: the frozen CLIP; a depth beyond a tower's number of layers is clamped to it.
        class_names: all classes of the domain, base and new.
        recipe: token counts, depths, initial words and seed.

    Raises:
        RecipeError: `text_init` has more tokens than the text prompts.
        TextTooLongError: a class name does not fit the text tower together with the prompts.
    """

    def __init__(self, backbone: Backbone, class_names: Sequence[str], recipe: BoostRecipe) -> None:
        super().__init__()
        self.backbone = backbone
        self._text_rate_factor = recipe.text_rate_factor
        generator = torch.Generator().manual_seed(recipe.seed)
        text = random_prompts(
            min(recipe.text_depth, backbone.n_text_layers), recipe.text_tokens, backbone.text_width, generator
        )
        image = random_prompts(
            min(recipe.image_depth, backbone.n_vision_layers), recipe.image_tokens, backbone.vision_width, generator
        )
        if recipe.text_tokens:
            check_words(backbone, recipe.text_init, recipe.text_tokens)
            words = word_states(backbone, recipe.text_init, len(text))
            text[:, : words.shape[1]] = words
        self.image = nn.Parameter(image.to(backbone.device))
        self.text = nn.Parameter(text.to(backbone.device))
        self._tokens = PromptedBackbone(backbone).tokenize(class_names, recipe.template, n_prompts=recipe.text_tokens)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Prompts of both towers; `text_rate_factor` scales the learning rate of the text prompts."""
        return [ParameterGroup([self.image]), ParameterGroup([self.text], self._text_rate_factor)]

    def logits(self, images_BCHW: Tensor) -> Tensor:
        """z_S = s_S · <f_S(x), g_S>: [B, K]."""
        model = self._boosted()
        return class_scores(model.logit_scale, model.encode_images(images_BCHW), model.encode_text(self._tokens))

    def fold(self) -> tuple[PromptedBackbone, ExportedPrompts]:
        """Return the boosted backbone; its text features follow from the prompts."""
        model = self._boosted()
        image, text = (None if group is None else group.detach() for group in (model.image_boost, model.text_boost))
        return PromptedBackbone(self.backbone, image, text), ExportedPrompts()

    def _boosted(self) -> PromptedBackbone:
        """The backbone with the current prompts; None for a tower with zero tokens."""
        image = self.image if self.image.shape[1] else None
        return PromptedBackbone(self.backbone, image, self.text if self.text.shape[1] else None)
