"""Groups of similar images."""

import numpy as np
import pytest

from prompted_clip.groups import MAX_GROUPS, group_similar


def unit(features_NE):
    return (features_NE / np.linalg.norm(features_NE, axis=1, keepdims=True)).astype(np.float32)


def clusters(rng, counts, noise):
    """Unit features around one random direction per cluster, and the cluster of each row."""
    labels_N = np.repeat(np.arange(len(counts)), counts)
    centres = rng.normal(size=(len(counts), 32))
    return unit(centres[labels_N] + noise * rng.normal(size=(len(labels_N), 32))), labels_N


@pytest.mark.parametrize("n", [1, 2, 3, 100, 5000])
def test_every_image_is_in_exactly_one_group(n):
    features_NE = unit(np.random.default_rng(n).normal(size=(n, 16)))
    groups = group_similar(features_NE)
    assert sorted(row for rows in groups for row in rows) == list(range(n))
    assert len(groups) <= min(MAX_GROUPS, int(np.ceil(np.sqrt(n))))
    assert all(groups)


def test_no_image_gives_no_group():
    assert group_similar(np.empty((0, 8), dtype=np.float32)) == []


def test_separate_classes_never_share_a_group():
    features_NE, labels_N = clusters(np.random.default_rng(0), [30, 25, 20, 15, 10], noise=0.2)
    for rows in group_similar(features_NE):
        assert len(set(labels_N[rows])) == 1


def test_equal_images_are_one_group_and_the_same_input_gives_the_same_groups():
    features_NE, _ = clusters(np.random.default_rng(1), [12, 4], noise=0.0)
    assert group_similar(features_NE) == group_similar(features_NE.copy())
    assert [len(rows) for rows in group_similar(features_NE)] == [12, 4]


def test_the_largest_group_and_the_most_typical_image_come_first():
    features_NE, _ = clusters(np.random.default_rng(2), [40, 20, 10], noise=0.3)
    groups = group_similar(features_NE)
    assert [len(rows) for rows in groups] == sorted((len(rows) for rows in groups), reverse=True)
    centred_NE = unit(features_NE - features_NE.mean(axis=0))
    for rows in groups:
        similarity = centred_NE[rows] @ centred_NE[rows].sum(axis=0)
        assert np.all(np.diff(similarity) <= 1e-4 * abs(similarity[0]))
