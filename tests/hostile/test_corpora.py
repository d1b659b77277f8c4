"""Corpora of hostile and unusual input, whole (`slow`) or a sample, through reader, decoder and a real server."""

import random
from itertools import pairwise

import pytest

from prompt_store import read_bundle
from tests.hostile.bad_images import bad_images
from tests.hostile.bundle_cases import accepted_bundles, refused_bundles
from tests.hostile.cases import sample
from tests.hostile.corpora import (
    bundle_sender,
    image_sender,
    live_store,
    problems,
    raw_sender,
    wrong_codes,
    wrong_pixels,
)
from tests.hostile.good_images import good_images
from tests.hostile.http_cases import answered_requests, refused_requests
from tests.prompt_store.samples import tree
from tests.service.fakes import picture
from tests.service.processes import client_of, serving

SEED = 26


@pytest.fixture(scope="module")
def corpora():
    return bad_images(), good_images(), refused_bundles(), accepted_bundles(), refused_requests(), answered_requests()


def sampled(cases, n):
    return sample(cases, n, random.Random(SEED))  # noqa: S311


def test_the_corpora_are_large_and_names_are_unique(corpora):
    bad, good, refused, accepted, requests, answered = corpora
    assert len(bad) >= 1_000
    assert len(good) >= 200
    assert len(refused) >= 400
    assert len(accepted) >= 40
    assert len(requests) + len(answered) >= 200
    for cases in (bad, good, refused, requests):
        assert len({case.name for case in cases}) == len(cases)
        assert len({case.data for case in cases}) > 0.97 * len(cases)


def test_the_corpora_are_the_same_every_time(corpora):
    bad, _, refused, _, requests, _ = corpora
    assert bad == bad_images()
    assert refused == refused_bundles()
    assert requests == refused_requests()
    assert bad_images(1) != bad


def test_bundles_are_refused_with_the_code_of_the_rule_that_they_break(corpora):
    assert wrong_codes(corpora[2]) == []


def test_unusual_bundles_are_read(corpora):
    for name, data in corpora[3].items():
        assert read_bundle(data).digest.startswith("sha256:"), name


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_unusual_images_have_their_pixels(corpora):
    assert wrong_pixels(corpora[1]) == []


def is_well(url):
    with client_of(url) as client:
        answer = client.post("/classify/paint", content=picture("green"))
        return answer.json()["results"][0]["predictions"][0]["label"] == "green"


@pytest.mark.parametrize("n", [100, pytest.param(10_000, marks=pytest.mark.slow)], ids=["sample", "whole"])
def test_a_server_gives_each_hostile_input_its_answer_and_stays_well(corpora, tmp_path, n):
    store = live_store(tmp_path)
    bad, good, refused, _, requests, answered = corpora
    before = tree(store.root)
    with serving(store) as (_, url):
        send_image, send_bundle, send_raw = image_sender(url), bundle_sender(url), raw_sender(url)
        found = problems(sampled(bad, n), send_image)
        found += problems(sampled(refused, n), send_bundle)
        found += problems(sampled(requests, n) + answered, send_raw)
        found += [image.name for image in sampled(good, n // 2) if send_image(image.data).statuses != (200,)]
        assert found == []
        assert is_well(url)
    assert tree(store.root) == before


def test_a_sample_has_cases_of_every_family(corpora):
    for cases in (corpora[0], corpora[2], corpora[4]):
        families = {case.name.rpartition(" ")[0] for case in cases}
        chosen = sampled(cases, 60)
        assert {case.name.rpartition(" ")[0] for case in chosen} == families
        assert len({case.name for case in chosen}) == len(chosen)
        assert all(one != other for one, other in pairwise(chosen))
