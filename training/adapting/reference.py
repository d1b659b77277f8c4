"""Settings of the frozen reference model of some methods: boosted or plain, and its text template.

The CasPL paper (arXiv 2409.17805) uses the boosted model wherever a method's paper says CLIP. It specifies neither the
reference model of these methods nor its template, so both are settings here.
"""

from typing import Literal

from pydantic import Field

from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe, Settings


class TextSettings(Settings):
    """Settings of frozen text features."""

    template: str = Field(default="a photo of a {}.", description="the hand-written prompt template")
    boosted_text: Literal["learned", "template"] = Field(
        default="learned",
        description="text for a boosted model: the template it was boosted with, or `template`; inferred",
    )


class TemplateRecipe(TextSettings, AdaptRecipe):
    """Settings of methods with frozen text features."""


class ReferenceRecipe(AdaptRecipe):
    """Settings of methods with a frozen reference model."""

    reference: Literal["boosted", "plain"] = Field(
        default="boosted", description="the frozen reference model; inferred"
    )


def class_template(model: PromptedBackbone, recipe: TextSettings) -> str:
    """The template, with one `{}`, for a frozen model's text features."""
    if model.template is not None and recipe.boosted_text == "learned":
        return model.template
    return recipe.template
