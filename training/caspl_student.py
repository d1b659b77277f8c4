"""CasPL's student: the frozen backbone with deep boosting prompts in both towers.

Source: CasPL (arXiv 2409.17805), section 3.2.
Legend: B images, K classes, E joint width, L prompt layers, P prompt tokens, W tower width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prompted_clip.backbone import Backbone
from training.adapting.method import ExportedPrompts
from training.errors import RecipeError
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
        start: boosting prompts to start from, instead of words and random tokens.

    Raises:
        RecipeError: `text_init` has more tokens than the text prompts, or the start's prompts do not have the recipe's
            numbers of tokens and layers.
        TextTooLongError: a class name does not fit the text tower together with the prompts.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_names: Sequence[str],
        recipe: BoostRecipe,
        start: PromptedBackbone | None = None,
    ) -> None:
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
        if start is not None:
            image, text = _start_of("image", start.image_boost, image), _start_of("text", start.text_boost, text)
        elif recipe.text_tokens:
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


def _start_of(tower: str, start: Tensor | None, prompts: Tensor) -> Tensor:
    """The start's prompts of one tower, a copy on the CPU.

    Raises:
        RecipeError: they do not have the shape of `prompts`, [L, P, W].
    """
    found = tuple(start.shape[:2]) if start is not None else (0, 0)
    depth, tokens = prompts.shape[:2]
    if found != (depth, tokens) and (found[1] or tokens):
        msg = (
            f"The bundle to start from has {found[1]} {tower} tokens in {found[0]} layers, the recipe {tokens} in "
            f"{depth}. Set {tower}_tokens and {tower}_depth to the bundle's."
        )
        raise RecipeError(msg)
    return prompts if start is None else start.detach().cpu().clone()
