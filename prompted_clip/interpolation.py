"""Interpolation of smooth functions of a covariance's damping from a few of its values.

Legend: N examples, M nodes.
"""

from collections.abc import Iterator
from itertools import count
from math import ceil, exp, log, sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebder, chebpts1, chebvander

from prompted_clip.features import Floats, Ints

MAX_RATIO: Final = 1.05
"""Of the dampings that one interpolation covers."""
HALF_WIDTH: Final = 1e-3
"""Of the interval of an interpolation, relative to its middle, or a multiple: the slope needs nodes that differ."""
MIDDLES: Final = 1e-3
"""Relative distance of the middles, so that slightly different dampings have the same nodes."""
TOLERANCE: Final = 1e-9
"""Relative error of a slope times its share of a score, which is about 1/N. Values are more exact."""


class Nodes(NamedTuple):
    """Dampings from which a smooth function is interpolated at the dampings of some examples.

    Attributes:
        rows: the examples.
        dampings_M: Chebyshev nodes.
        weights_NM: of the function's values at the nodes, for its value.
        slopes_NM: of the same, for its derivative.
    """

    rows: Ints | slice
    dampings_M: Floats
    weights_NM: Floats
    slopes_NM: Floats


def nodes_for(damping_N: Floats) -> Iterator[Nodes]:
    """Groups of examples with similar dampings; one of all examples, unless there are few or very unequal ones.

    The functions are rational with poles at r <= 0, so with M nodes the relative error is about rho^-M (Trefethen,
    *Approximation Theory and Approximation Practice*, theorem 8.2), that of the slope M^2 rho^(1 - M) / 2.
    """
    group_N = np.floor(np.log(damping_N / damping_N.min()) / log(MAX_RATIO))
    for group in np.unique(group_N):
        rows = np.flatnonzero(group_N == group)
        low, high = damping_N[rows].min(), damping_N[rows].max()
        middle = exp(MIDDLES * round(log((low + high) / 2) / MIDDLES))
        half_width = HALF_WIDTH * middle * max(1, ceil(max(high / middle - 1, 1 - low / middle) / HALF_WIDTH))
        ratio = middle / half_width
        rho = ratio + sqrt(ratio**2 - 1)
        n_nodes = next(m for m in count(2) if m**2 / 2 * rho ** (1 - m) <= TOLERANCE * len(damping_N))
        nodes_M = chebpts1(n_nodes)
        to_coefficients_MM = np.linalg.inv(chebvander(nodes_M, n_nodes - 1))
        place_N = (damping_N[rows] - middle) / half_width
        yield Nodes(
            rows if len(rows) < len(damping_N) else slice(None),
            middle + half_width * nodes_M,
            chebvander(place_N, n_nodes - 1) @ to_coefficients_MM,
            chebvander(place_N, n_nodes - 2) @ chebder(to_coefficients_MM) / half_width,
        )
