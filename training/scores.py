"""Class scores from features, kept out of bfloat16.

Legend: B rows, K classes, E joint width.
"""

import torch
from torch import Tensor


def class_scores(scale: float, features_BE: Tensor, texts: Tensor) -> Tensor:
    """Scores z_bc = s · <f_b, g_c> in the features' own precision.

    Autocast would take the product to bfloat16. Behind a scale of 100, cosines of 0.25 would then be 0.1 apart, more
    than classes differ by. Source of the equation: CLIP (arXiv 2103.00020), figure 3.

    Args:
        scale: s.
        features_BE: f, unit norm.
        texts: g, unit norm: [K, E], or [B, K, E] where each image has its own.

    Returns:
        [B, K].
    """
    with torch.autocast(features_BE.device.type, enabled=False):
        equation = "be,ke->bk" if texts.ndim == 2 else "be,bke->bk"
        return scale * torch.einsum(equation, features_BE, texts)
