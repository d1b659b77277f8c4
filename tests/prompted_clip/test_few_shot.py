"""Closed-form few-shot heads against refits without each example, and the whole fit against a slow reference."""

import math

import numpy as np
import pytest

from prompted_clip.calibration import calibrate
from prompted_clip.features import Features
from prompted_clip.few_shot import FEW_SHOT_METHODS
from prompted_clip.fit import ALPHAS, MIN_EXAMPLES, fit_few_shot
from prompted_clip.fit_report import calibration_error, first_half, fit_and_report, report_fit, suspects, wilson
from tests.reference.slow_few_shot import slow_fit

METHODS = pytest.mark.parametrize("method", FEW_SHOT_METHODS.values(), ids=FEW_SHOT_METHODS)


def examples(counts, width=16, noise=1.0, seed=0):
    """Unit features around one centre per class, labels, and logits of noisy text features."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    features = centres[labels] + noise * rng.normal(size=(len(labels), width))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    texts = centres + 1.5 * rng.normal(size=centres.shape)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return features, labels, 20 * features @ texts.T


def without(row, *arrays):
    return [np.delete(array, row, axis=0) for array in arrays]


def assert_close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def refitted_scores(method, features, labels, rows):
    """Scores of some examples, each by a term that is fitted without it."""
    n_classes = labels.max() + 1
    return [method.fit(*without(row, features, labels), n_classes)(features[row : row + 1])[0] for row in rows]


@METHODS
@pytest.mark.parametrize("counts", [(4, 5, 6, 7, 8), (2, 2), (2, 30, 3), (200, 150)], ids=str)
@pytest.mark.parametrize("width", [3, 16, 60], ids="width {}".format)
def test_leave_one_out_equals_refits_without_each_example(method, counts, width):
    features, labels, _ = examples(counts, width)
    term, found = method.fit_and_leave_out(Features(features), labels, len(counts))
    rows = np.linspace(0, len(labels) - 1, 40).astype(int)
    assert_close(found[rows], refitted_scores(method, features, labels, rows))
    direct = method.fit(features, labels, len(counts))
    assert_close(term.weight_KE, direct.weight_KE)
    assert_close(term.bias_K, direct.bias_K)


def test_leave_one_out_of_gda_is_exact_where_single_examples_make_up_most_of_the_covariance():
    features, labels, _ = examples((30, 30, 30), noise=1e-2)
    outliers = np.random.default_rng(1).normal(size=(3, features.shape[1]))
    features[[0, 40, 80]] = outliers / np.linalg.norm(outliers, axis=1, keepdims=True)
    gda = FEW_SHOT_METHODS["gda"]
    _, found = gda.fit_and_leave_out(Features(features), labels, 3)
    assert_close(found, refitted_scores(gda, features, labels, range(90)))


@METHODS
def test_identical_images_in_every_class_still_give_finite_scores(method):
    features, labels, _ = examples((4, 4), noise=0.0)
    assert np.isfinite(method.fit_and_leave_out(Features(features), labels, 2)[1]).all()
    assert (method.fit(features, labels, 2)(features).argmax(1) == labels).all()


def test_gda_with_equal_counts_is_the_published_one_up_to_a_constant():
    features, labels, _ = examples((5, 5, 5), width=8)
    means = np.array([features[labels == k].mean(axis=0) for k in range(3)])
    spread = features - means[labels]
    scatter = spread.T @ spread
    precision = 8 * np.linalg.inv(scatter + np.trace(scatter) / 14 * np.eye(8))
    published = features @ precision @ means.T - np.diag(means @ precision @ means.T) / 2 + math.log(1 / 3)
    difference = FEW_SHOT_METHODS["gda"].fit(features, labels, 3)(features) - published
    np.testing.assert_allclose(difference, difference[0, 0] * np.ones_like(difference), atol=1e-9)


def test_leave_one_out_accuracy_of_gda_is_that_on_new_images():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 40))
    draw = [np.repeat(np.arange(20), n) for n in (6, 100)]
    features = [centres[labels] + 3.5 * rng.normal(size=(len(labels), 40)) for labels in draw]
    features = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in features]
    gda = FEW_SHOT_METHODS["gda"]
    left_out = (gda.fit_and_leave_out(Features(features[0]), draw[0], 20)[1].argmax(1) == draw[0]).mean()
    new = (gda.fit(features[0], draw[0], 20)(features[1]).argmax(1) == draw[1]).mean()
    assert left_out == pytest.approx(new, abs=0.03)


@pytest.mark.parametrize("name", FEW_SHOT_METHODS)
def test_a_fit_equals_the_slow_reference(name):
    features, labels, text_logits = examples((9, 6, 3, 0, 4), width=7)
    queries, _, query_text_logits = examples((2, 2, 2, 2, 2), width=7, seed=5)
    fit = fit_few_shot(features, labels, text_logits, {name: FEW_SHOT_METHODS[name]})
    loss, logits, left_out = slow_fit(name, features, labels, text_logits, queries, query_text_logits)
    assert fit.method == name
    assert calibrate(fit.logits_NK, labels)[0] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(fit.logits_NK, left_out, rtol=0, atol=1e-8)
    np.testing.assert_allclose(fit.logits(queries, query_text_logits), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_is_never_worse_than_the_text_features_on_its_own_loss(seed):
    features, labels, text_logits = examples((4, 4, 5, 6), noise=3.0, seed=seed)
    fit = fit_few_shot(features, labels, text_logits)
    assert calibrate(fit.logits_NK, labels)[0] <= calibrate(text_logits, labels)[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_alpha_has_the_least_loss_of_all_candidates(seed):
    rng = np.random.default_rng(seed)
    features, labels, text_logits = examples((4, 5, 6, 7), noise=10 ** rng.uniform(-1, 1), seed=seed)
    text_logits *= 10 ** rng.uniform(-2, 1)
    fit = fit_few_shot(features, labels, text_logits, {"gda": FEW_SHOT_METHODS["gda"]})
    scores = FEW_SHOT_METHODS["gda"].fit_and_leave_out(Features(features), labels, 4)[1]
    centred = [each - each.mean(axis=1, keepdims=True) for each in (text_logits, scores)]
    candidates = [0, *(ALPHAS * centred[0].std() / centred[1].std())]
    losses = [calibrate(text_logits + alpha * centred[1], labels).loss for alpha in candidates]
    assert calibrate(fit.logits_NK, labels).loss == pytest.approx(min(losses), rel=1e-12)
    assert fit.alpha == pytest.approx(candidates[int(np.argmin(losses))], rel=1e-9)


def test_prepared_features_give_the_same_fit_after_every_change_of_labels():
    features, labels, text_logits = examples((9, 8, 12, MIN_EXAMPLES, 7), width=24, noise=1.5)
    prepared, names, rng = Features(features), list("abcde"), np.random.default_rng(2)
    for _ in range(6):
        (fit, report), (fresh, expected) = (
            fit_and_report(each, labels, text_logits, names) for each in (prepared, features.copy())
        )
        assert report == expected
        for name in ("weight_KE", "bias_K"):
            assert_close(getattr(fit.term, name), getattr(fresh.term, name), 1e-8)
        assert_close(fit.logits_NK, fresh.logits_NK, 1e-8)
        assert (fit.alpha, fit.temperature) == pytest.approx((fresh.alpha, fresh.temperature), rel=1e-8)
        labels = labels.copy()
        labels[rng.integers(len(labels))] = rng.integers(5)


def test_the_text_features_stay_alone_where_no_method_helps():
    features, labels, text_logits = examples((8, 8, 8), width=40, noise=30.0)
    text_logits = 5 * np.eye(3)[labels] + 0 * text_logits
    fit = fit_few_shot(features, labels, text_logits)
    assert (fit.method, fit.alpha) == ("text", 0)
    assert not fit.term.weight_KE.any()


def test_the_order_of_examples_changes_nothing():
    features, labels, text_logits = examples((6, 7, 8))
    order = np.random.default_rng(1).permutation(len(labels))
    one = fit_few_shot(features, labels, text_logits)
    two = fit_few_shot(features[order], labels[order], text_logits[order])
    assert (one.method, pytest.approx(one.alpha)) == (two.method, two.alpha)
    np.testing.assert_allclose(one.logits_NK[order], two.logits_NK, atol=1e-9)


def test_the_order_of_classes_only_reorders_the_logits():
    features, labels, text_logits = examples((6, 3, 7, 8))
    order = np.array([2, 0, 3, 1])
    one = fit_few_shot(features, labels, text_logits)
    two = fit_few_shot(features, np.argsort(order)[labels], text_logits[:, order])
    np.testing.assert_allclose(one.logits(features, text_logits)[:, order],
                               two.logits(features, text_logits[:, order]), atol=1e-6)  # fmt: skip


def test_classes_with_few_examples_or_none_keep_their_text_features():
    features, labels, text_logits = examples((8, MIN_EXAMPLES - 1, 0, MIN_EXAMPLES))
    fit = fit_few_shot(features, labels, text_logits)
    assert fit.method != "text"
    assert fit.is_fitted_K.tolist() == [True, False, False, True]
    assert not fit.term.weight_KE[1:3].any()
    assert not fit.term.bias_K[1:3].any()


@pytest.mark.parametrize("counts", [(9, 0), (9, 3), (3, 3), (1, 1), (1, 0)], ids=str)
def test_with_fewer_than_two_fittable_classes_the_fit_is_the_text_features(counts):
    features, labels, text_logits = examples(counts)
    fit = fit_few_shot(features, labels, text_logits)
    report = report_fit(fit, features, ["cat", "dog"])
    assert (fit.method, report.method, report.n_examples) == ("text", "text", len(labels))


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.45, 0.55]] * 10)
    labels = np.array([0] * 6 + [1] * 14)
    assert calibration_error(probabilities, labels) == pytest.approx((10 * abs(0.9 - 0.6) + 10 * abs(0.55 - 1.0)) / 20)


def test_wilsons_interval_matches_published_values():
    found = wilson(81, 263)  # Newcombe 1998, table I
    assert (found.rate, found.low, found.high) == pytest.approx((0.308, 0.2553, 0.3662), abs=1e-3)
    assert wilson(0, 4).low == pytest.approx(0, abs=1e-12)


def test_flipped_labels_are_suspects_worst_first_and_few_good_ones_are():
    features, labels, text_logits = examples([16] * 10, width=32)
    rng = np.random.default_rng(3)
    flipped = rng.choice(len(labels), 8, replace=False)
    wrong = labels.copy()
    wrong[flipped] = (labels[flipped] + rng.integers(1, 10, 8)) % 10
    fit = fit_few_shot(features, wrong, text_logits)
    found = suspects(fit.probabilities(), wrong)
    own = fit.probabilities()[found, wrong[found]]
    assert set(flipped) <= set(found.tolist())
    assert len(found) - 8 <= 0.1 * (len(labels) - 8)
    assert (np.diff(own) >= 0).all()


@pytest.mark.parametrize("counts", [(12, 16, 3, 0), (1, 5), (4, 4)], ids=str)
def test_the_first_half_has_half_of_every_class_and_hardly_changes_with_a_label(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(1).random(len(labels))
    half = first_half(labels, order)
    assert np.bincount(labels[half], minlength=len(counts)).tolist() == [(n + 1) // 2 for n in counts]
    for row in range(len(labels)):
        changed = labels.copy()
        changed[row] = (labels[row] + 1) % 2
        assert (first_half(changed, order) != half).sum() <= 3


def test_the_accuracy_with_half_of_the_examples_does_not_depend_on_their_order():
    features, labels, text_logits = examples((12, 16, 9), noise=2.0)
    names, shuffled = ("cat", "dog", "bird"), np.random.default_rng(2)
    first = report_fit(fit_few_shot(features, labels, text_logits), features, names).half_accuracy
    for _ in range(5):
        order = shuffled.permutation(len(labels))
        fit = fit_few_shot(features[order], labels[order], text_logits[order])
        again = np.float32(features[order]) * np.float32(1 + 1e-7)  # the model's rounding in another batch
        assert report_fit(fit, np.float64(again), names).half_accuracy == first


@pytest.mark.parametrize("n_changes", [1, 5, 60])
def test_a_fit_to_nearly_the_same_examples_equals_one_from_scratch(n_changes):
    features, labels, _ = examples((30, 40, 50), width=48)
    prepared, rng, gda = Features(features), np.random.default_rng(4), FEW_SHOT_METHODS["gda"]
    for _ in range(n_changes):
        half = first_half(labels, prepared.order_N)
        for is_used in (half, ~half):
            found = gda.fit_some(prepared, is_used, labels[is_used], 3)
            expected = gda.fit(features[is_used], labels[is_used], 3)
            assert_close(found.weight_KE, expected.weight_KE)
            assert_close(found.bias_K, expected.bias_K)
        labels = labels.copy()
        labels[rng.integers(len(labels))] = rng.integers(3)


def held_out(term_logits, fitted, text, labels):
    """Logits with the alpha of least loss, 0 among the candidates; `term_logits` are of the fitted classes."""
    scores = np.zeros_like(text)
    scores[:, fitted] = term_logits - term_logits.mean(axis=1, keepdims=True)
    own_text = text[:, fitted] - text[:, fitted].mean(axis=1, keepdims=True)
    candidates = [0, *(ALPHAS * own_text.std() / scores[:, fitted].std())]
    return min((text + alpha * scores for alpha in candidates), key=lambda logits: calibrate(logits, labels).loss)


def half_logits(fit, features, text_logits, is_train):
    """Logits of the other examples by the method's term for the classes with enough examples."""
    fitted = [k for k in range(text_logits.shape[1]) if (fit.labels_N[is_train] == k).sum() >= MIN_EXAMPLES]
    is_used = is_train & np.isin(fit.labels_N, fitted)
    own = np.searchsorted(fitted, fit.labels_N[is_used])
    term = FEW_SHOT_METHODS[fit.method].fit(features[is_used], own, len(fitted))
    return held_out(term(features[~is_train]), fitted, text_logits[~is_train], fit.labels_N[~is_train])


def test_the_report_has_counts_per_class_and_the_accuracy_with_half_of_the_examples():
    features, labels, text_logits = examples((12, 16, 3, 0), noise=2.0)
    fit = fit_few_shot(features, labels, text_logits)
    report = report_fit(fit, features, ("cat", "dog", "bird", "fish"))
    named = fit.logits_NK.argmax(1)
    half = first_half(labels, Features(features).order_N)
    n_right = sum(
        (half_logits(fit, features, text_logits, half == one).argmax(1) == labels[half != one]).sum()
        for one in (True, False)
    )
    assert report.accuracy.rate == pytest.approx((named == labels).mean())
    assert report.accuracy.low < report.accuracy.rate < report.accuracy.high
    assert [one.n_examples for one in report.classes] == [12, 16, 3, 0]
    assert [one.is_fitted for one in report.classes] == [True, True, False, False]
    assert report.classes[3].accuracy is None
    assert np.array(report.confusion).sum() == 31
    assert np.trace(report.confusion) == (named == labels).sum()
    assert report.half_accuracy == pytest.approx(n_right / 31)
    assert report.calibration_error_after <= report.calibration_error_before + 0.05
    assert set(report.abstain) == {"0.01", "0.05", "0.1"}
    assert all(one.label != one.predicted for one in report.suspects)
