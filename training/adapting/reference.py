"""The frozen model that some methods hold on to: boosted or plain, and the text it reads class names in.

The CasPL paper (arXiv 2409.17805) puts the boosted model wherever a method's paper says CLIP. It does not name the
reference of these methods, nor the text it reads; both are choices here.
"""

from typing import Literal

from pydantic import Field

from training.prompted_backbone import PromptedBackbone
from training.recipe import AdaptRecipe


class TemplateRecipe(AdaptRecipe):
    """Methods that read class names through a frozen text tower."""

    template: str = Field(default="a photo of a {}.", description="the hand-written prompt around a class name")
    boosted_text: Literal["learned", "template"] = Field(
        default="learned",
        description="what a boosted model reads: the text its prompts were learned with, or the template; inferred",
    )


class ReferenceRecipe(AdaptRecipe):
    """Methods with a frozen reference beside the model that learns."""

    reference: Literal["boosted", "plain"] = Field(
        default="boosted", description="the frozen model to hold on to; inferred"
    )


def class_template(model: PromptedBackbone, recipe: TemplateRecipe) -> str:
    """The text, with one `{}`, in which a frozen model reads class names."""
    if model.template is not None and recipe.boosted_text == "learned":
        return model.template
    return recipe.template
