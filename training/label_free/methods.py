"""The label-free methods by `--method` name: recipe class and function."""

from dataclasses import dataclass
from typing import Final

from training.adapting.methods import RECIPES
from training.adapting.reference import TextSettings
from training.label_free.grip import GRIPRecipe, learn_grip
from training.label_free.lafter import LaFTerRecipe, learn_lafter
from training.label_free.lp_clip import LPCLIPRecipe, learn_lp_clip
from training.label_free.method import Learn
from training.label_free.transclip import TransCLIPRecipe, learn_transclip
from training.label_free.upl import UPLRecipe, learn_upl
from training.recipe import Settings


@dataclass(frozen=True)
class LabelFreeEntry:
    """One method.

    Attributes:
        recipe: recipe class.
        learn: the method.
        takes_teacher: whether a larger CLIP can predict the pseudo-labels.
    """

    recipe: type[TextSettings]
    learn: Learn
    takes_teacher: bool


LABEL_FREE: Final[dict[str, LabelFreeEntry]] = {
    "upl": LabelFreeEntry(UPLRecipe, learn_upl, takes_teacher=True),
    "grip": LabelFreeEntry(GRIPRecipe, learn_grip, takes_teacher=True),
    "transclip": LabelFreeEntry(TransCLIPRecipe, learn_transclip, takes_teacher=False),
    "lp-clip": LabelFreeEntry(LPCLIPRecipe, learn_lp_clip, takes_teacher=True),
    "lafter": LabelFreeEntry(LaFTerRecipe, learn_lafter, takes_teacher=False),
}

ALL_RECIPES: Final[dict[str, type[Settings]]] = {
    **RECIPES,
    **{name: entry.recipe for name, entry in LABEL_FREE.items()},
}
"""Recipe classes of all methods, with and without labels."""
