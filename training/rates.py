"""Defaults for backbones other than ViT-B/16: the learning rate, and values of boosting for small backbones.

AdamW moves every coordinate of a prompt by about the learning rate, whatever the gradient. Their joint effect on the
output grows with the number of coordinates, so the rate is divided by width x depth. Measured with boosting: 0.01
suits the demo student (96 x 4) and disturbs a tower of ViT-B/16's size (768 x 12), for which 0.0004 is stable.
"""

from typing import Final, TypeVar

from rich.console import Console

from prompted_clip.backbone import Backbone
from training.recipe import SMALL_BOOST, BoostRecipe, Recipe

R = TypeVar("R", bound=Recipe)

_B16_SIZE: Final = 768 * 12
"""Width x depth of ViT-B/16's image tower."""
_SMALL: Final = _B16_SIZE // 2
"""Largest width x depth of a small backbone: that of ViT-S/16."""
_MAX_RATE: Final = 0.02
"""Limit for towers smaller than the demo student's."""


def scale_rate(recipe: R, backbone: Backbone, console: Console) -> R:
    """Scale AdamW's default rate, which is for ViT-B/16, to a backbone, and print the result.

    A rate that was set, in a file or on the command line, is kept.
    """
    if recipe.optimizer != "adamw" or "learning_rate" in recipe.model_fields_set:
        return recipe
    size = _size(backbone)
    rate = min(recipe.learning_rate * _B16_SIZE / size, _MAX_RATE)
    if size != _B16_SIZE:
        line = f"learning_rate {rate:.2g} for {backbone.arch}, scaled from {recipe.learning_rate:g} for ViT-B/16"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return recipe.model_copy(update={"learning_rate": rate})


def boost_defaults(recipe: BoostRecipe, backbone: Backbone, console: Console) -> BoostRecipe:
    """Apply the defaults of boosting for a backbone: `SMALL_BOOST` if it is small, and `scale_rate`; prints both.

    Values that were set, in a file or on the command line, are kept. PromptKD, on which `SMALL_BOOST` was not measured,
    has the same defaults for every backbone.
    """
    values = {key: value for key, value in SMALL_BOOST.items() if key not in recipe.model_fields_set}
    if values and recipe.distillation == "caspl" and _size(backbone) <= _SMALL:
        shown = ", ".join(f"{key} {value}" for key, value in values.items())
        line = f"{shown} for {backbone.arch}: defaults for small backbones"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        recipe = recipe.model_copy(update=values)
    return scale_rate(recipe, backbone, console)


def _size(backbone: Backbone) -> int:
    return backbone.vision_width * backbone.n_vision_layers
