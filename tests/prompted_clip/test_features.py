"""Features of examples, and what is kept about them over changes of labels."""

import numpy as np
import pytest

from prompted_clip.features import Features, class_sums


def unit(n, width, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(40, 8), (5, 12)], ids=str)
def test_the_eigenvectors_give_the_gram_matrix_and_the_same_inner_products(shape):
    values = unit(*shape)
    eigen = Features(values).eigen
    np.testing.assert_allclose(eigen.basis_EE * eigen.values_E @ eigen.basis_EE.T, values.T @ values, atol=1e-12)
    np.testing.assert_allclose(eigen.features_NE @ eigen.features_NE.T, values @ values.T, atol=1e-12)
    assert (eigen.values_E >= 0).all()


def test_rows_are_kept_for_the_same_examples_only():
    features, is_used = Features(unit(10, 4)), np.arange(10) < 7
    part = features.rows(is_used)
    assert features.rows(is_used.copy()) is part
    assert features.rows(np.ones(10, bool)) is features
    np.testing.assert_array_equal(features.rows(~is_used).values_NE, features.values_NE[7:])


def test_a_decomposition_of_nearly_the_same_examples_is_used_and_completed():
    values, is_used = unit(200, 32), np.arange(200) % 2 == 0
    features = Features(values)
    first = features.near(is_used)
    assert len(first.moved_JE) == 0
    features.near(~is_used)
    for n_moved, is_kept in ((3, True), (60, False)):
        moved = is_used.copy()
        moved[:n_moved] = ~moved[:n_moved]
        near = features.near(moved)
        gram = near.basis_EE * near.values_E @ near.basis_EE.T
        rows = near.moved_JE @ near.basis_EE.T
        np.testing.assert_allclose(gram + (rows.T * near.signs_J) @ rows, values[moved].T @ values[moved], atol=1e-12)
        assert (near.basis_EE is first.basis_EE) == is_kept


def test_features_equal_themselves_in_another_type_and_no_others():
    values = unit(6, 4).astype(np.float32)
    features = Features(values.astype(np.float64))
    assert features.equals(values)
    assert not features.equals(values[::-1])
    assert not features.equals(values[:5])


def test_class_sums_equal_sums_of_masks():
    values, labels = unit(30, 5), np.random.default_rng(1).choice([0, 2, 3], 30)
    counts, sums = class_sums(values, labels, 5)
    assert counts.tolist() == [(labels == k).sum() for k in range(5)]
    np.testing.assert_allclose(sums, [values[labels == k].sum(axis=0) for k in range(5)], atol=1e-12)
