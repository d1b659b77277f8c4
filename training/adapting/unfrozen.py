"""Boosting prompts that phase 2 trains further, for figure 4 of the CasPL paper (arXiv 2409.17805).

CasPL freezes the boosting prompts in phase 2. With `boosting = "learnable"` they start from the boosting bundle and are
trained together with the adapting prompts, at the same learning rate.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from training.adapting.method import ExportedPrompts, detached
from training.errors import RecipeError
from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe


class LearnableBoostingRecipe(AdaptRecipe):
    """Settings of methods that can train the boosting prompts further."""

    boosting: Literal["frozen", "learnable"] = Field(
        default="frozen", description="frozen: boosting prompts as in CasPL; learnable: trained further in phase 2"
    )


def unfreeze(
    base_model: PromptedBackbone, recipe: LearnableBoostingRecipe
) -> tuple[PromptedBackbone, nn.ParameterList]:
    """The model to train, and its trainable boosting prompts: those of the image tower, then of the text tower.

    With frozen boosting prompts, the model is `base_model` and the list is empty. Otherwise the parameters are copies,
    so that `base_model` remains the reference model.

    Raises:
        RecipeError: learnable boosting prompts on a base model without any.
    """
    if recipe.boosting == "frozen":
        return base_model, nn.ParameterList()
    image, text = (_copy(group) for group in (base_model.image_boost, base_model.text_boost))
    parameters = nn.ParameterList([group for group in (image, text) if group is not None])
    if not len(parameters):
        raise RecipeError(
            'boosting = "learnable" needs boosting prompts, and the base model has none: pass a boosting bundle with '
            '--boost, or set boosting = "frozen".'
        )
    return replace(base_model, image_boost=image, text_boost=text), parameters


def with_trained_boosting(
    exported: ExportedPrompts, base_model: PromptedBackbone, trained: nn.ParameterList
) -> ExportedPrompts:
    """The exported tensors with the boosting prompts of `base_model`, if those were trained."""
    if not len(trained):
        return exported
    image, text = (
        detached(group) if group is not None else None for group in (base_model.image_boost, base_model.text_boost)
    )
    return replace(exported, image_boost=image, text_boost=text)


def _copy(group: Tensor | None) -> nn.Parameter | None:
    return nn.Parameter(group.detach().clone()) if group is not None else None
