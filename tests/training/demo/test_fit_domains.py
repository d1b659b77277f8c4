"""The table of few-shot heads: samples, the tables in the documentation, and the recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.demo.fit_domains import CHECKS, METHODS, SEEDS, SHOTS, Encoded, checks_table, markdown_table

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "docs" / "results" / "demo-fit.json").read_text())["rows"]


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


def test_the_tables_in_the_documentation_are_those_of_the_recorded_rows():
    page = (ROOT / "docs" / "few-shot.md").read_text(encoding="utf-8")
    assert f"<!-- demo-fit:start -->\n{markdown_table(RECORDED)}\n<!-- demo-fit:end -->" in page
    assert f"<!-- demo-fit-checks:start -->\n{checks_table(RECORDED)}\n<!-- demo-fit-checks:end -->" in page


def test_every_method_was_run_with_all_shots_and_seeds_in_six_domains():
    found = {(row["domain"], row["method"], row["shots"], row["seed"]) for row in RECORDED if row["shots"]}
    assert len(found) == 6 * len(METHODS) * len(SHOTS) * len(SEEDS)


@pytest.mark.parametrize(("shots", "gain"), [(1, 0), (2, 0), (4, 1.5), (8, 4), (16, 6)])
def test_recorded_fits_are_below_the_text_features_in_no_domain_and_gain_with_more_images(shots, gain):
    text = {row["domain"]: row["base"] for row in RECORDED if row["method"] == "zero-shot"}
    gains = {domain: [] for domain in text}
    for row in RECORDED:
        if (row["method"], row["shots"]) == ("auto", shots):
            gains[row["domain"]].append(row["base"] - text[row["domain"]])
    means = [np.mean(own) for own in gains.values()]
    assert min(means) >= 0
    assert np.mean(means) >= gain


def test_recorded_checks_are_per_cent():
    checked = [row for row in RECORDED if CHECKS[0] in row]
    assert len(checked) == 6 * len(SEEDS)
    assert all(0 <= row[check] <= 100 for row in checked for check in CHECKS)
