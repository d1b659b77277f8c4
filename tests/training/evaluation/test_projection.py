import numpy as np
import pytest

from training.evaluation.projection import lay_out, principal_axes


def distances(x):
    return np.linalg.norm(x[:, None] - x[None], axis=-1)


def test_principal_axes_preserve_the_distances_of_2d_features():
    rng = np.random.default_rng(3)
    plane, _ = np.linalg.qr(rng.standard_normal((8, 2)))
    flat = rng.standard_normal((20, 2)) * [5.0, 1.0]
    points = principal_axes(flat @ plane.T + 7.0)
    np.testing.assert_allclose(distances(points), distances(flat), atol=1e-9)
    assert points[:, 0].var() > points[:, 1].var()


def test_principal_axes_do_not_depend_on_signs_and_support_rank_one():
    features = np.random.default_rng(4).standard_normal((6, 5))
    mirrored = principal_axes(features @ np.diag([-1, 1, -1, 1, 1]))
    np.testing.assert_allclose(mirrored, principal_axes(features), atol=1e-12)
    assert (principal_axes(np.ones((1, 5))) == 0).all()


def test_few_points_are_projected_to_principal_axes():
    features = np.random.default_rng(5).standard_normal((5, 3))
    layout = lay_out(features)
    assert layout.method == "principal axes"
    np.testing.assert_array_equal(layout.points_N2, principal_axes(features))


def test_tsne_keeps_clusters_together_and_is_deterministic():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(6)
    centres = rng.standard_normal((3, 16)) * 4
    features = (centres.repeat(8, axis=0) + 0.1 * rng.standard_normal((24, 16))).astype(np.float32)
    layout = lay_out(features)
    assert layout.method == "t-SNE"
    np.testing.assert_array_equal(layout.points_N2, lay_out(features).points_N2)
    nearest = (distances(layout.points_N2) + np.diag(np.full(24, np.inf))).argmin(axis=1)
    assert (nearest // 8 == np.arange(24) // 8).all()
