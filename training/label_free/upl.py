"""UPL: CoOp on the images that CLIP itself is most confident about.

    1. p(c | x) = softmax_c( s · <f(x), g_c> ) with a hand-written template, y = argmax_c p(c | x)
    2. the K most confident images of each class
    3. a context by CoOp's cross-entropy on these images and classes

Source: UPL (arXiv 2204.03649), *pseudo label generation* and *prompt representation optimization*. Differs from it:
one model predicts the pseudo-labels, the base model or a teacher (the paper averages several image encoders), and one
context is learned (the paper averages the predictions of 16 contexts with different seeds, which do not fold).
"""

from pydantic import Field

from training.adapting.coop import CoOp, CoOpRecipe
from training.adapting.reference import TextSettings
from training.label_free.method import Learned, Unlabelled, most_confident


class UPLRecipe(TextSettings, CoOpRecipe):
    """CoOp's settings, with the number of pseudo-labels; the schedule is that of UPL's repository."""

    epochs: int = Field(default=50, ge=1)
    images_per_class: int = Field(default=16, ge=1, description="most confident images of each class")


def learn_upl(unlabelled: Unlabelled, recipe: UPLRecipe) -> Learned:
    """Train a context on the most confident images of each class."""
    found = most_confident(unlabelled.encoded.probabilities(), recipe.images_per_class)
    method = CoOp(unlabelled.base_model, unlabelled.class_names, recipe)
    trained = unlabelled.train(method, found, recipe)
    return Learned(method.fold(), method.template, found.metrics(len(unlabelled.class_names)), trained)
