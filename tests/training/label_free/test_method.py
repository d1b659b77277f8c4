"""The choice of pseudo-labels, against a loop over classes in plain Python."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.label_free.method import most_confident


def probabilities(n_images, n_classes, seed, temperature=3.0):
    generator = torch.Generator().manual_seed(seed)
    scores = temperature * torch.randn(n_images, n_classes, generator=generator, dtype=torch.float64)
    return scores.softmax(dim=1)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 8), st.integers(0, 99))
def test_the_most_confident_images_of_each_class_are_chosen(n_images, n_classes, k, seed):
    p = probabilities(n_images, n_classes, seed).tolist()
    expected = []
    for label in range(n_classes):
        own = [i for i in range(n_images) if p[i].index(max(p[i])) == label]
        expected += [(i, label) for i in sorted(sorted(own, key=lambda i: -p[i][label])[:k])]

    found = most_confident(torch.tensor(p), k)

    assert list(zip(found.rows_N.tolist(), found.labels_N.tolist(), strict=True)) == expected


def test_a_class_that_is_never_the_most_probable_has_no_pseudo_labels():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]], dtype=torch.float64)

    found = most_confident(p, 1)

    assert found.rows_N.tolist() == [2, 1]
    assert found.labels_N.tolist() == [0, 1]
    assert found.metrics(3) == {"n_pseudo_labels": 2, "n_classes_without_pseudo_labels": 1}


def test_equal_images_are_chosen_in_their_order():
    found = most_confident(torch.full((4, 1), 1.0, dtype=torch.float64), 2)
    assert found.rows_N.tolist() == [0, 1]
