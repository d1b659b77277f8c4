"""Few-shot heads in the demo domains: samples, and the recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from prompted_clip.calibration import RATES
from training.demo.fit_domains import CHECK_SEEDS, CHECKS, METHODS, SEEDS, SHOTS, Encoded

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "docs" / "results" / "demo-fit.json").read_text())
ROWS, RECORDED_CHECKS = RECORDED["rows"], RECORDED["checks"]
TEXT = {(row["domain"], row["boosted"]): row for row in ROWS if row["method"] == "zero-shot"}


def encoded(n_classes=4, n_each=6):
    labels = np.tile(np.arange(n_classes), n_each)
    features = np.random.default_rng(0).normal(size=(len(labels), 5))
    return Encoded(features, labels, features @ np.ones((5, n_classes)) + np.arange(n_classes))


def test_a_sample_has_as_many_images_of_each_class_and_depends_on_the_seed():
    one, same, other = (encoded().sample(3, seed) for seed in (1, 1, 2))
    assert np.bincount(one.labels_N).tolist() == [3, 3, 3, 3]
    assert (one.features_NE == same.features_NE).all()
    assert (one.features_NE != other.features_NE).any()


def test_half_of_the_classes_have_labels_and_logits_of_their_own():
    half = encoded().among((2, 3))
    assert np.bincount(half.labels_N).tolist() == [6, 6]
    assert half.text_logits_NK.shape == (12, 2)
    assert (half.text_logits_NK[:, 1] - half.text_logits_NK[:, 0]).tolist() == pytest.approx([1] * 12)


def test_every_method_was_run_with_all_shots_and_seeds_in_six_domains_with_and_without_boosting():
    keys = ("domain", "boosted", "method", "shots", "seed")
    found = {tuple(row[key] for key in keys) for row in ROWS if row["shots"]}
    assert len(found) == 6 * 2 * len(METHODS) * len(SHOTS) * len(SEEDS)
    assert len(TEXT) == 6 * 2
    assert len({(row["domain"], row["seed"]) for row in RECORDED_CHECKS}) == 6 * len(CHECK_SEEDS)


def gains(method, shots, measure="base", *, boosted=True):
    """By domain, the gains of all seeds over the text features."""
    found = {domain: [] for domain, _ in TEXT}
    for row in ROWS:
        if (row["method"], row["shots"], row["boosted"]) == (method, shots, boosted):
            found[row["domain"]].append(row[measure] - TEXT[row["domain"], boosted][measure])
    return found


@pytest.mark.parametrize(("shots", "gain"), [(1, 0), (2, 0), (4, 1.5), (8, 4), (16, 6)])
def test_recorded_fits_are_below_the_text_features_in_no_domain_and_gain_with_more_images(shots, gain):
    means = [np.mean(own) for own in gains("auto", shots).values()]
    assert min(means) >= 0
    assert np.mean(means) >= gain


@pytest.mark.parametrize("boosted", [True, False], ids=["boosted", "plain"])
@pytest.mark.parametrize("measure", ["base", "all"])
@pytest.mark.parametrize("shots", [1, 2])
def test_no_recorded_fit_with_one_or_two_images_is_below_the_text_features(shots, measure, boosted):
    assert min(min(own) for own in gains("auto", shots, measure, boosted=boosted).values()) >= 0


def test_auto_chose_gda_in_every_recorded_fit():
    rates = {
        method: [[row["base"], row["all"]] for row in ROWS if row["method"] == method] for method in ("auto", "gda")
    }
    assert rates["auto"] == rates["gda"]


@pytest.mark.parametrize("shots", [1, 2])
def test_unlabelled_images_add_more_without_boosting(shots):
    plain, boosted = (
        np.mean([one for own in gains("auto-unlabelled", shots, boosted=flag).values() for one in own])
        for flag in (False, True)
    )
    assert plain > boosted + 2


@pytest.mark.parametrize(("shots", "gain"), [(1, 2), (2, 3), (4, 4), (8, 5), (16, 7)])
def test_recorded_fits_with_unlabelled_images_gain_from_the_first_image_on(shots, gain):
    means = [np.mean(own) for own in gains("auto-unlabelled", shots).values()]
    assert min(means) >= 0
    assert np.mean(means) >= gain


def test_recorded_suspects_are_most_changed_labels_and_few_others():
    assert np.mean([row["suspects_found"] for row in RECORDED_CHECKS]) >= 90
    assert np.mean([row["suspects_good"] for row in RECORDED_CHECKS]) <= 10


@pytest.mark.parametrize("rate", RATES)
def test_a_stated_abstention_rate_holds_within_one_point_on_unseen_images(rate):
    assert f"abstained_{rate:g}" in CHECKS
    mean = np.mean([row[f"abstained_{rate:g}"] for row in RECORDED_CHECKS])
    assert mean == pytest.approx(100 * rate, abs=1)
