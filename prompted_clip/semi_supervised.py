"""Semi-supervised few-shot heads: GDA on labelled images and on unlabelled ones with soft labels of the text features.

One step of the expectation-maximisation algorithm of arXiv 2402.04087 for unlabelled images, with the labelled images
added to its second half. Further steps, or soft labels of a head fitted to the labelled images, lowered the accuracy in
the demo world. Soft labels of the text features do not depend on any example's label (except through the temperature),
so leave-one-out scores remain exact.

Legend: N examples, U unlabelled images, K classes, E joint width.
"""

from dataclasses import dataclass
from typing import Final

from prompted_clip.features import Bools, Floats, Ints
from prompted_clip.gda import Gda, SoftLabelled

GDA_UNLABELLED: Final = "gda-unlabelled"
"""The method of a fit that uses unlabelled images."""
UNLABELLED_WEIGHT: Final = 5.0
"""Number of examples that the unlabelled images count as, per class on average."""
MIN_IMAGES: Final = 2
"""Least sum of a class's labelled images and weights, so that leaving one out keeps one."""


@dataclass(frozen=True, eq=False)
class UnlabelledImages:
    """Images without labels; some may show none of the classes.

    Attributes:
        features_UE: unit norm.
        text_logits_UK: z = s <f, g_k>.
    """

    features_UE: Floats
    text_logits_UK: Floats


def semi_supervised_gda(features_UE: Floats, soft_labels_UK: Floats, counts_K: Ints) -> tuple[Gda, Bools]:
    """GDA with unlabelled images, for the classes with labelled images and `MIN_IMAGES` including soft labels.

    Args:
        features_UE: unit norm, U >= 1.
        soft_labels_UK: class probabilities; scaled to `UNLABELLED_WEIGHT`, at most 1 per image.
        counts_K: number of labelled images.

    Returns:
        The method, and the classes it is for: [K].
    """
    n_images, n_classes = soft_labels_UK.shape
    weights_UK = min(1.0, UNLABELLED_WEIGHT * n_classes / n_images) * soft_labels_UK
    is_fitted_K: Bools = (counts_K > 0) & (counts_K + weights_UK.sum(axis=0) >= MIN_IMAGES)
    return Gda(SoftLabelled(features_UE, weights_UK[:, is_fitted_K])), is_fitted_K
