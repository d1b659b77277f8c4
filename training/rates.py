"""Default learning rates for backbones other than ViT-B/16, for which the papers chose theirs."""

from typing import Final, TypeVar

from prompted_clip.backbone import Backbone
from training.recipe import Recipe

R = TypeVar("R", bound=Recipe)

_PAPERS_SIZE: Final = 768 * 12
"""Width x depth of ViT-B/16's image tower."""


def scale_rate(recipe: R, backbone: Backbone) -> R:
    """Scale a default learning rate by width x depth of the image tower, relative to ViT-B/16's.

    A learning rate that was set, in a file or on the command line, is kept.
    """
    if "learning_rate" in recipe.model_fields_set:
        return recipe
    factor = backbone.vision_width * backbone.n_vision_layers / _PAPERS_SIZE
    return recipe.model_copy(update={"learning_rate": recipe.learning_rate * min(1.0, factor)})
