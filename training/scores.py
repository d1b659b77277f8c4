"""Class scores from features, exempt from autocast.

Legend: B rows, K classes, E joint width.
"""

import torch
from torch import Tensor


def class_scores(scale: float, features_BE: Tensor, texts: Tensor) -> Tensor:
    """Scores z_bc = s · <f_b, g_c> in the precision of the features.

    Under autocast the product would be bfloat16; with s = 100, scores near a cosine of 0.25 would be quantised to steps
    of 0.1, more than classes differ by. Source of the equation: CLIP (arXiv 2103.00020), figure 3.

    Args:
        scale: s.
        features_BE: f, unit norm.
        texts: g, unit norm: [K, E], or [B, K, E] with text features per image.

    Returns:
        [B, K].
    """
    with torch.autocast(features_BE.device.type, enabled=False):
        equation = "be,ke->bk" if texts.ndim == 2 else "be,bke->bk"
        return scale * torch.einsum(equation, features_BE, texts)
