"""GDA with unlabelled images against loops over its equations, and fits that choose it or leave it."""

import numpy as np
import pytest

from prompted_clip.calibration import calibrate, softmax
from prompted_clip.features import Features
from prompted_clip.few_shot import AUTO_METHODS
from prompted_clip.fit import fit_few_shot
from prompted_clip.fit_report import first_half, report_fit
from prompted_clip.gda import MIN_DAMPING, Gda, SoftLabelled
from prompted_clip.semi_supervised import (
    GDA_UNLABELLED,
    MIN_IMAGES,
    UNLABELLED_WEIGHT,
    UnlabelledImages,
    semi_supervised_gda,
)
from tests.prompted_clip.test_few_shot import held_out


def world(counts, n_unlabelled, seed=0, width=12, noise=1.2, n_new=0):
    """Unit features around one centre per class: labelled, unlabelled and new ones, each with logits of noisy text."""
    rng = np.random.default_rng(seed)
    centres, n_classes = rng.normal(size=(len(counts), width)), len(counts)
    texts = centres + 0.9 * rng.normal(size=centres.shape)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)

    def draw(labels):
        features = centres[labels] + noise * rng.normal(size=(len(labels), width))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return features, labels, 12 * features @ texts.T

    labelled = draw(np.repeat(np.arange(n_classes), counts))
    features, _, text_logits = draw(rng.integers(0, n_classes, n_unlabelled))
    return labelled, UnlabelledImages(features, text_logits), draw(rng.integers(0, n_classes, n_new))


def slow_term(features, labels, soft_features, weights):
    """W and b by loops: every image is a row with one weight per class."""
    n_classes, width = weights.shape[1], features.shape[1]
    rows = [(one, np.eye(n_classes)[label]) for one, label in zip(features, labels, strict=True)]
    rows += list(zip(soft_features, weights, strict=True))
    totals = sum(weight for _, weight in rows)
    squares = sum(weight**2 for _, weight in rows)
    means = [sum(weight[k] * one for one, weight in rows) / totals[k] for k in range(n_classes)]
    scatter = sum(
        weight[k] * np.outer(one - means[k], one - means[k]) for one, weight in rows for k in range(n_classes)
    )
    damping = max(np.trace(scatter) / (totals.sum() - 1), MIN_DAMPING)
    precision = width * np.linalg.inv(scatter + damping * np.eye(width))
    noise = np.trace(precision @ scatter) / sum(totals[k] - squares[k] / totals[k] for k in range(n_classes))
    biases = [(noise * squares[k] / totals[k] ** 2 - means[k] @ precision @ means[k]) / 2 for k in range(n_classes)]
    return np.array(means) @ precision, np.array(biases)


@pytest.mark.parametrize("counts", [(4, 1, 2), (1, 1), (0, 3, 5, 1)], ids=str)
def test_gda_with_soft_labels_equals_the_slow_reference(counts):
    (features, labels, _), unlabelled, _ = world(counts, 30)
    weights = 0.3 * softmax(unlabelled.text_logits_UK)
    term = Gda(SoftLabelled(unlabelled.features_UE, weights)).fit(features, labels, len(counts))
    weight, bias = slow_term(features, labels, unlabelled.features_UE, weights)
    np.testing.assert_allclose(term.weight_KE, weight, rtol=0, atol=1e-9 * np.abs(weight).max())
    np.testing.assert_allclose(term.bias_K, bias, rtol=0, atol=1e-9 * np.abs(bias).max())


@pytest.mark.parametrize("counts", [(4, 1, 2), (1, 1), (0, 3, 5, 1)], ids=str)
@pytest.mark.parametrize("width", [3, 12, 40], ids="width {}".format)
def test_leave_one_out_with_soft_labels_equals_refits_without_each_example(counts, width):
    (features, labels, _), unlabelled, _ = world(counts, 30, width=width)
    gda = Gda(SoftLabelled(unlabelled.features_UE, 0.3 * softmax(unlabelled.text_logits_UK)))
    refits = [
        gda.fit(np.delete(features, row, axis=0), np.delete(labels, row), len(counts))(features[row : row + 1])[0]
        for row in range(len(labels))
    ]
    term, found = gda.fit_and_leave_out(Features(features), labels, len(counts))
    direct = gda.fit(features, labels, len(counts))
    np.testing.assert_allclose(term.weight_KE, direct.weight_KE, rtol=0, atol=1e-9 * np.abs(direct.weight_KE).max())
    np.testing.assert_allclose(term.bias_K, direct.bias_K, rtol=0, atol=1e-9 * np.abs(direct.bias_K).max())
    np.testing.assert_allclose(found, refits, rtol=0, atol=1e-9 * np.abs(refits).max())


def test_a_soft_label_of_one_is_a_label():
    (features, labels, _), _, _ = world((5, 4, 6), 1)
    is_soft = np.arange(len(labels)) % 2 == 1
    soft = SoftLabelled(features[is_soft], np.eye(3)[labels[is_soft]])
    one = Gda(soft).fit(features[~is_soft], labels[~is_soft], 3)
    other = Gda().fit(features, labels, 3)
    np.testing.assert_allclose(one.weight_KE, other.weight_KE, rtol=1e-9)
    np.testing.assert_allclose(one.bias_K, other.bias_K, rtol=1e-9)


@pytest.mark.parametrize(("n_images", "weight"), [(2, 1.0), (10, 1.0), (100, 0.1)])
def test_unlabelled_images_count_as_a_few_examples_per_class_and_never_as_more_than_one_each(n_images, weight):
    features, soft_labels = np.ones((n_images, 3)), np.tile([0.75, 0.25], (n_images, 1))
    method, is_fitted = semi_supervised_gda(features, soft_labels, np.array([9, 9]))
    assert is_fitted.all()
    assert weight == min(1, UNLABELLED_WEIGHT * 2 / n_images)
    np.testing.assert_allclose(method.soft.weights_UK, weight * soft_labels)


def test_only_classes_with_a_labelled_image_and_enough_in_all_are_fitted():
    soft_labels = np.array([[0.9, 0.0, 0.0, 0.1], [1.0, 0.0, 0.0, 0.0]])
    _, is_fitted = semi_supervised_gda(np.ones((2, 3)), soft_labels, np.array([0, 1, MIN_IMAGES, 1]))
    assert is_fitted.tolist() == [False, False, True, False]


def accuracy(fit, new):
    features, labels, text_logits = new
    return (fit.logits(features, text_logits).argmax(1) == labels).mean()


@pytest.mark.parametrize("shots", [1, 2, 3])
def test_with_few_examples_unlabelled_images_raise_the_accuracy_on_new_images(shots):
    gains = []
    for seed in range(5):
        labelled, unlabelled, new = world((shots,) * 8, 400, seed=seed, n_new=500)
        fit = fit_few_shot(*labelled, unlabelled=unlabelled)
        gains.append(accuracy(fit, new) - accuracy(fit_few_shot(*labelled), new))
    assert np.mean(gains) > 0.02
    assert min(gains) > -0.02


def test_leave_one_out_accuracy_with_unlabelled_images_is_that_on_new_images():
    found = []
    for seed in range(5):
        labelled, unlabelled, new = world((6,) * 20, 400, seed=seed, noise=2.0, n_new=2000)
        fit = fit_few_shot(*labelled, {}, unlabelled)
        assert fit.method == GDA_UNLABELLED
        found.append((fit.logits_NK.argmax(1) == labelled[1]).mean() - accuracy(fit, new))
    assert np.mean(found) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_misleading_unlabelled_images_are_not_used_and_change_nothing(seed):
    labelled, unlabelled, _ = world((4, 5, 6, 7), 200, seed=seed)
    shuffled = UnlabelledImages(unlabelled.features_UE, unlabelled.text_logits_UK[:, [1, 2, 3, 0]])
    plain, fit = fit_few_shot(*labelled), fit_few_shot(*labelled, unlabelled=shuffled)
    assert fit.method == plain.method != GDA_UNLABELLED
    np.testing.assert_array_equal(fit.term.weight_KE, plain.term.weight_KE)
    assert (fit.alpha, fit.temperature) == (plain.alpha, plain.temperature)


def test_the_report_counts_unlabelled_images_and_halves_only_the_labelled_ones():
    (features, labels, text_logits), unlabelled, _ = world((2, 3, 2, 3), 200)
    fit = fit_few_shot(features, labels, text_logits, AUTO_METHODS, unlabelled)
    report = report_fit(fit, features, list("abcd"), unlabelled)
    assert report.method == GDA_UNLABELLED
    assert (report.n_examples, report.n_unlabelled) == (10, 200)
    assert all(one.is_fitted for one in report.classes)
    right = []
    half = first_half(labels, Features(features).order_N)
    for own in (half, ~half):
        soft_labels = softmax(unlabelled.text_logits_UK / calibrate(text_logits[own], labels[own]).temperature)
        gda, is_fitted = semi_supervised_gda(unlabelled.features_UE, soft_labels, np.bincount(labels[own]))
        assert is_fitted.all()
        scores, text = gda.fit(features[own], labels[own], 4)(features[~own]), text_logits[~own]
        logits = held_out(scores, [0, 1, 2, 3], text, labels[~own])
        right += list(logits.argmax(1) == labels[~own])
    assert report.half_accuracy == pytest.approx(np.mean(right))
