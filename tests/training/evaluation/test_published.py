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
    published_mean,
    published_shots,
)
from training.evaluation.rows import ZERO_SHOT


def test_published_means_match_the_published_data_sets():
    printed = [published(name, ZERO_SHOT, boosted=False) for name in PAPER_DATASETS]
    mean = published_mean(ZERO_SHOT, boosted=False)
    assert len(printed) == 11
    assert statistics.fmean(row.base for row in printed) == pytest.approx(mean.base, abs=0.006)
    assert statistics.fmean(row.new for row in printed) == pytest.approx(mean.new, abs=0.006)


def test_published_harmonic_means_match_base_and_new():
    for row in MEANS.values():
        if row.source == CASPL_PAGE:
            assert row.h == pytest.approx(harmonic_mean(row.base, row.new), abs=0.011)
    assert MEANS["gda", False].h < harmonic_mean(83.96, 74.53)  # a mean over data sets


def test_the_papers_data_sets_are_in_the_catalog():
    assert set(PAPER_DATASETS) <= set(CATALOG)


@pytest.mark.parametrize(
    ("dataset", "method", "boosted"),
    [("four", ZERO_SHOT, False), ("imagenetv2", ZERO_SHOT, False), ("dtd", ZERO_SHOT, True), ("dtd", "coop", False)],
)
def test_unpublished_results_are_none(dataset, method, boosted):
    assert published(dataset, method, boosted=boosted) is None


def test_published_boosted_results_exceed_the_plain_ones():
    for method in ("coop", "cocoop", "maple", "promptsrc"):
        assert published_mean(method, boosted=True).h > published_mean(method, boosted=False).h
    plain, boosted = (published_shots("promptsrc", boosted=flag).by_shots for flag in (False, True))
    assert all(boosted[shots] > plain[shots] for shots in plain)
    assert all(list(row.by_shots.values()) == sorted(row.by_shots.values()) for row in FEW_SHOT_MEANS)
    assert published_shots("upt", boosted=False) is None
