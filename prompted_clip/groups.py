"""Groups of similar images, so that many can be labelled at once.

Legend: N images, E joint width, G groups.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_ITERATIONS: Final = 20
MAX_GROUPS: Final = 40


def group_similar(features_NE: NDArray[np.float32]) -> list[list[int]]:
    """Group unit-norm features by spherical k-means with about sqrt(N) groups, at most `MAX_GROUPS`; deterministic.

    Source: *Concept Decompositions for Large Sparse Text Data Using Clustering* (Dhillon and Modha 2001), seeded with
    the features that are farthest from each other.

    Returns:
        Row numbers, the most typical ones of a group first, the largest group first.
    """
    if not len(features_NE):
        return []
    # All images of a domain have a large component in common, which would hide their differences.
    features_NE = features_NE - features_NE.mean(axis=0)
    features_NE /= np.maximum(np.linalg.norm(features_NE, axis=1, keepdims=True), 1e-6)
    centres_GE = features_NE[_farthest_first(features_NE, min(MAX_GROUPS, math.ceil(math.sqrt(len(features_NE)))))]
    for _ in range(MAX_ITERATIONS):
        nearest_N = (features_NE @ centres_GE.T).argmax(axis=1)
        sums_GE = np.stack([features_NE[nearest_N == group].sum(axis=0) for group in range(len(centres_GE))])
        norms_G1 = np.linalg.norm(sums_GE, axis=1, keepdims=True)
        updated_GE = np.where(norms_G1 > 0, sums_GE / np.maximum(norms_G1, 1e-12), centres_GE)
        if np.array_equal(updated_GE, centres_GE):
            break
        centres_GE = updated_GE
    similarity_NG = features_NE @ centres_GE.T
    nearest_N = similarity_NG.argmax(axis=1)
    groups = []
    for group in np.unique(nearest_N):
        rows = np.flatnonzero(nearest_N == group)
        groups.append(rows[np.argsort(-similarity_NG[rows, group], kind="stable")].tolist())
    return sorted(groups, key=lambda rows: (-len(rows), rows))


def _farthest_first(features_NE: NDArray[np.float32], n: int) -> list[int]:
    """`n` rows, each with the least similarity to those before it; the first is the closest to the mean."""
    chosen = [int((features_NE @ features_NE.mean(axis=0)).argmax())]
    similarity_N = features_NE @ features_NE[chosen[0]]
    while len(chosen) < n:
        chosen.append(int(similarity_N.argmin()))
        similarity_N = np.maximum(similarity_N, features_NE @ features_NE[chosen[-1]])
    return chosen
