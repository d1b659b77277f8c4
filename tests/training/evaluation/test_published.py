import statistics

import pytest

from training.data.catalog import CATALOG
from training.evaluation.metrics import harmonic_mean
from training.evaluation.published import (
    CASPL_PAGE,
    FEW_SHOT_MEANS,
    MEANS,
    PAPER_DATASETS,
    published,
    published_shots,
)
from training.evaluation.rows import ZERO_SHOT


@pytest.mark.parametrize("method", [ZERO_SHOT, "gda"])
def test_published_means_match_the_published_data_sets(method):
    printed = [published(name, method, boosted=False) for name in PAPER_DATASETS]
    mean = MEANS[method, False]
    assert len(printed) == 11
    assert statistics.fmean(row.base for row in printed) == pytest.approx(mean.base, abs=0.006)
    assert statistics.fmean(row.new for row in printed) == pytest.approx(mean.new, abs=0.006)


def test_published_harmonic_means_match_base_and_new():
    for row in MEANS.values():
        if row.source == CASPL_PAGE:
            assert row.h == pytest.approx(harmonic_mean(row.base, row.new), abs=0.011)
    per_set = [published(name, "gda", boosted=False).h for name in PAPER_DATASETS]
    assert MEANS["gda", False].h == pytest.approx(
        statistics.fmean(per_set), abs=0.006
    )  # GDA's is a mean over data sets


def test_the_papers_data_sets_are_in_the_catalog():
    assert set(PAPER_DATASETS) <= set(CATALOG)


@pytest.mark.parametrize(
    ("dataset", "method", "boosted"),
    [
        ("four", ZERO_SHOT, False),
        ("imagenetv2", ZERO_SHOT, False),
        ("dtd", ZERO_SHOT, True),
        ("dtd", "ivlp", False),
        ("dtd", "gda", True),
    ],
)
def test_unpublished_results_are_none(dataset, method, boosted):
    assert published(dataset, method, boosted=boosted) is None


@pytest.mark.parametrize("boosted", [False, True])
def test_the_four_methods_of_the_paper_have_published_results_for_every_data_set(boosted):
    for method in ("coop", "cocoop", "maple", "promptsrc"):
        assert all(published(name, method, boosted=boosted) is not None for name in PAPER_DATASETS)
    assert published("dtd", "promptsrc", boosted=True).h == 76.44


def test_published_boosted_results_exceed_the_plain_ones():
    for method in ("coop", "cocoop", "maple", "promptsrc"):
        assert MEANS[method, True].h > MEANS[method, False].h
    plain, boosted = (published_shots("promptsrc", boosted=flag).by_shots for flag in (False, True))
    assert all(boosted[shots] > plain[shots] for shots in plain)
    assert all(list(row.by_shots.values()) == sorted(row.by_shots.values()) for row in FEW_SHOT_MEANS)
    assert published_shots("upt", boosted=False) is None
