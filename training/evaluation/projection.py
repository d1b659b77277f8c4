"""Image features laid out in a plane, to be looked at: t-SNE where scikit-learn is installed, principal axes elsewhere.

t-SNE, as in figure 5 of CasPL (arXiv 2409.17805), shows clusters clearly, but neither their sizes nor the distances
between them mean anything. Principal axes are a linear map: what lies apart in the picture lies apart in the features.

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
    """Points in a plane.

    Attributes:
        points_N2: coordinates, float64.
        method: how they came about.
    """

    points_N2: NDArray[np.float64]
    method: Literal["t-SNE", "principal axes"]


def lay_out(features_NE: NDArray[np.floating]) -> Layout:
    """Lay features out, the same way each time."""
    if len(features_NE) < MIN_ROWS:
        return Layout(principal_axes(features_NE), "principal axes")
    try:
        from sklearn.manifold import TSNE  # noqa: PLC0415  optional, and slow to import
    except ModuleNotFoundError:
        return Layout(principal_axes(features_NE), "principal axes")
    perplexity = min(PERPLEXITY, (len(features_NE) - 1) / 3)
    # Starting from the principal axes, scaled as scikit-learn scales them, keeps the large-scale order of the clusters.
    start_N2 = principal_axes(features_NE)
    start_N2 = start_N2 / max(float(start_N2[:, 0].std()), np.finfo(float).tiny) * 1e-4
    tsne = TSNE(perplexity=perplexity, init=start_N2, learning_rate="auto", random_state=SEED)
    return Layout(np.asarray(tsne.fit_transform(np.asarray(features_NE)), dtype=np.float64), "t-SNE")


def principal_axes(features_NE: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates along the two principal axes.

    Each axis points to the side where its largest coordinate lies, so that the picture does not depend on the
    linear-algebra library.

    Returns:
        [N, 2] centred; an axis beyond the rank of the features is 0.
    """
    x_NE = np.asarray(features_NE, dtype=np.float64)
    left, scales, _ = np.linalg.svd(x_NE - x_NE.mean(axis=0), full_matrices=False)
    points_N2 = np.zeros((len(x_NE), 2))
    n_found = min(2, len(scales))
    points_N2[:, :n_found] = left[:, :n_found] * scales[:n_found]
    furthest = points_N2[np.abs(points_N2).argmax(axis=0), np.arange(2)]
    return points_N2 * np.where(furthest < 0, -1.0, 1.0)
