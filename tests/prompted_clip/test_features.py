"""Features of examples, and what is kept about them over changes of labels."""

import numpy as np
import pytest

from prompted_clip.features import MAX_KEPT_DAMPINGS, ClassSums, Features, RowProducts, class_sums


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


class Counted(np.ndarray):
    """An array that counts the rows or columns that it is multiplied by."""

    n_multiplied = 0

    def __matmul__(self, other):
        Counted.n_multiplied += other.shape[1]
        return np.asarray(self) @ other


def test_only_changed_rows_are_multiplied_again(monkeypatch):
    monkeypatch.setattr(Counted, "n_multiplied", 0)
    values, rows = unit(30, 6), unit(10, 6, seed=1)
    products = RowProducts(values.view(Counted))
    first = products(rows)
    expected = first.copy()
    for changed, n in ([2, 7], 2), ([], 0), ([0], 1), (list(range(8)), 10):
        before, rows = Counted.n_multiplied, rows.copy()
        rows[changed] += 0.5
        np.testing.assert_allclose(products(rows), values @ rows.T, atol=1e-14)
        assert Counted.n_multiplied - before == n
    np.testing.assert_allclose(products(rows[:4]), values @ rows[:4].T, atol=1e-14)
    np.testing.assert_array_equal(first, expected, "earlier results stay")
    with pytest.raises(ValueError, match="read-only"):
        first += 1


def test_class_sums_after_any_change_of_labels_are_those_from_scratch():
    values, rng = unit(60, 5), np.random.default_rng(1)
    sums, labels = ClassSums(values), rng.integers(-1, 6, 60)
    for n_changes in (1, 0, 3, 40, 1):
        for found, expected in zip(sums(labels, 6), ClassSums(values)(labels, 6), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert sums(labels, 6)[0].tolist() == [(labels == k).sum() for k in range(6)]
        np.testing.assert_allclose(sums(labels, 6)[1], [values[labels == k].sum(axis=0) for k in range(6)], atol=1e-12)
        labels[rng.integers(60, size=n_changes)] = rng.integers(-1, 6)  # in place
    assert len(sums(labels, 9)[0]) == 9


def test_products_of_the_last_dampings_are_kept():
    eigen = Features(unit(20, 4)).eigen
    for damping in range(1, MAX_KEPT_DAMPINGS + 2):
        found = eigen.damped(float(damping))
        inverse = np.linalg.inv(np.diag(eigen.values_E) + damping * np.eye(4))
        expected = np.diag(eigen.features_NE @ inverse @ eigen.features_NE.T)
        np.testing.assert_allclose(found.squares_N, expected, atol=1e-12)
        first = eigen.damped(1.0)
    assert eigen.damped(1.0) is first
    assert eigen.damped(float(damping)) is found
    assert len(eigen._damped) == MAX_KEPT_DAMPINGS


def test_text_logits_are_computed_again_for_other_text_features_only():
    features, texts = Features(unit(8, 4)), unit(3, 4, seed=1).astype(np.float32)
    first = features.text_logits(texts, 20.0)
    assert features.text_logits(texts.copy(), 20.0) is first
    for other, scale in ((texts, 10.0), (texts[::-1], 10.0), (texts[:2], 10.0)):
        expected = scale * features.values_NE @ other.T.astype(np.float64)
        np.testing.assert_allclose(features.text_logits(other, scale), expected, atol=1e-12)
