"""2D projection of image features: t-SNE if scikit-learn is installed, else principal axes.

t-SNE, as in figure 5 of CasPL (arXiv 2409.17805), separates clusters, but their sizes and distances have no meaning.
Principal axes are a linear projection.

Legend: N images, E feature width.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

MIN_ROWS: Final = 8
"""Fewer points have no neighbourhoods to keep."""
PERPLEXITY: Final = 30.0
SEED: Final = 0


@dataclass(frozen=True, eq=False)
class Layout:
    """Projected points.

    Attributes:
        points_N2: coordinates, float64.
        method: name of the projection.
    """

    points_N2: NDArray[np.float64]
    method: Literal["t-SNE", "principal axes"]


def lay_out(features_NE: NDArray[np.floating]) -> Layout:
    """Project features to 2D; deterministic."""
    if len(features_NE) < MIN_ROWS:
        return Layout(principal_axes(features_NE), "principal axes")
    try:
        from sklearn.manifold import TSNE  # noqa: PLC0415  optional, and slow to import
    except ModuleNotFoundError:
        return Layout(principal_axes(features_NE), "principal axes")
    perplexity = min(PERPLEXITY, (len(features_NE) - 1) / 3)
    # Initializing with the principal axes, scaled as in scikit-learn, preserves the global structure.
    start_N2 = principal_axes(features_NE)
    start_N2 = start_N2 / max(float(start_N2[:, 0].std()), np.finfo(float).tiny) * 1e-4
    tsne = TSNE(perplexity=perplexity, init=start_N2, learning_rate="auto", random_state=SEED)
    return Layout(np.asarray(tsne.fit_transform(np.asarray(features_NE)), dtype=np.float64), "t-SNE")


def principal_axes(features_NE: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates along the first two principal axes.

    The largest coordinate of each axis is positive, so that the result does not depend on the linear algebra library.

    Returns:
        [N, 2] centred; 0 for an axis beyond the rank of the features.
    """
    x_NE = np.asarray(features_NE, dtype=np.float64)
    left, scales, _ = np.linalg.svd(x_NE - x_NE.mean(axis=0), full_matrices=False)
    points_N2 = np.zeros((len(x_NE), 2))
    n_found = min(2, len(scales))
    points_N2[:, :n_found] = left[:, :n_found] * scales[:n_found]
    furthest = points_N2[np.abs(points_N2).argmax(axis=0), np.arange(2)]
    return points_N2 * np.where(furthest < 0, -1.0, 1.0)
