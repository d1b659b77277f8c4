"""Interpolation of functions of the damping against the functions themselves."""

import numpy as np
import pytest

from prompted_clip.interpolation import nodes_for

RANGES = {"narrow": (1.0, 1.001), "wide": (1e-6, 2.0), "one value": (0.3, 0.3), "above one group": (0.5, 0.53)}


@pytest.mark.parametrize("bounds", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("pole", [0.0, 1e-3, 7.0])
def test_values_and_slopes_of_functions_with_a_pole_are_interpolated(bounds, pole):
    dampings = np.random.default_rng(0).uniform(*bounds, size=50)
    rows_seen = []
    for nodes in nodes_for(dampings):
        own, values = dampings[nodes.rows], 1 / (pole + nodes.dampings_M)
        rows_seen += np.arange(50)[nodes.rows].tolist()
        np.testing.assert_allclose(nodes.weights_NM @ values, 1 / (pole + own), rtol=1e-8)
        np.testing.assert_allclose(nodes.slopes_NM @ values, -1 / (pole + own) ** 2, rtol=1e-6)
    assert sorted(rows_seen) == list(range(50))


def test_similar_dampings_share_a_few_nodes():
    (nodes,) = nodes_for(np.linspace(1.0, 1.001, 10_000))
    assert nodes.rows == slice(None)
    assert len(nodes.dampings_M) == 3


def test_slightly_different_dampings_have_the_same_nodes():
    dampings = np.linspace(0.8, 0.8003, 1280)
    (nodes,), (again,), (far,) = (list(nodes_for(factor * dampings)) for factor in (1, 1 + 1e-5, 1.01))
    np.testing.assert_array_equal(nodes.dampings_M, again.dampings_M)
    assert (nodes.dampings_M != far.dampings_M).all()
