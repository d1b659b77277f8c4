"""Mixed and stale answers are found, latencies count from the due time, and rates count whole images."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.answers import Answer, Swap, closed_loop_rate, is_mixed, is_stale, recovery_s, summarize
from benchmarks.bundles import domain_name, label, source_of
from benchmarks.errors import BenchError

DOMAIN, OTHER = domain_name(0), domain_name(1)
DIGESTS = {(DOMAIN, 1): "sha256:a", (DOMAIN, 2): "sha256:b", (OTHER, 1): "sha256:c"}


def answer(**changes):
    """A good answer of the first domain's version 1, due at 10 s and there at 10.2 s."""
    whole = Answer(10.0, 10.1, 10.2, 200, DOMAIN, DOMAIN, 1, "sha256:a", (label(DOMAIN, 1, 3), label(DOMAIN, 1, 0)))
    return dataclasses.replace(whole, **changes)


@given(index=st.integers(0, 99_999), version=st.integers(1, 999), class_id=st.integers(0, 999))
def test_a_label_names_its_domain_and_version(index, version, class_id):
    assert source_of(label(domain_name(index), version, class_id)) == (domain_name(index), version)


def test_an_answer_of_one_version_is_not_mixed():
    assert not is_mixed(answer(), DIGESTS)


@pytest.mark.parametrize(
    "planted",
    [
        {"labels": (label(DOMAIN, 1, 3), label(DOMAIN, 2, 0))},
        {"labels": (label(OTHER, 1, 0),)},
        {"version": 2},
        {"digest": "sha256:b"},
        {"version": 2, "digest": "sha256:b"},
        {"domain": OTHER, "digest": "sha256:c", "labels": (label(OTHER, 1, 0),)},
        {"version": 9, "digest": "sha256:z", "labels": (label(DOMAIN, 9, 0),)},
    ],
    ids=[
        "two versions' labels",
        "another domain's",
        "other version",
        "other digest",
        "labels of the old",
        "not asked",
        "unknown",
    ],
)
def test_an_answer_put_together_from_two_is_mixed(planted):
    assert is_mixed(answer(**planted), DIGESTS)


SWAPS = [Swap(DOMAIN, 1, -math.inf, -math.inf), Swap(DOMAIN, 2, 10.0, 11.0), Swap(DOMAIN, 3, 20.0, 21.0)]


@pytest.mark.parametrize(
    ("sent_s", "done_s", "version", "expected"),
    [
        (8.0, 9.0, 1, False),
        (8.0, 9.0, 2, True),
        (10.5, 10.6, 1, False),
        (10.5, 10.6, 2, False),
        (12.0, 13.0, 1, True),
        (12.0, 13.0, 2, False),
        (10.9, 30.0, 1, False),
        (22.0, 23.0, 2, True),
        (22.0, 23.0, 3, False),
    ],
)
def test_an_answer_is_stale_when_its_version_was_not_live_at_any_moment_of_the_request(
    sent_s, done_s, version, expected
):
    assert is_stale(answer(sent_s=sent_s, done_s=done_s, version=version), SWAPS) is expected


def test_a_domain_without_swaps_is_never_stale():
    assert not is_stale(answer(domain=OTHER), SWAPS)


def test_a_latency_counts_from_the_due_time():
    assert answer(due_s=5.0, sent_s=9.0, done_s=9.5).latency_s == 4.5


def test_a_summary_counts_every_request_once():
    answers = [
        *[answer(due_s=0.0, done_s=0.01 * n) for n in range(1, 101)],
        answer(status=429, retry_after="1", sent_s=0.0, done_s=0.004),
        answer(status=503, sent_s=0.0, done_s=0.002),
        answer(status=504),
        answer(status=0),
        answer(status=500),
    ]

    found = summarize(answers, duration_s=10.0, slo_s=0.5)

    assert (found.n_requests, found.n_refused, found.n_expired, found.n_failed) == (105, 2, 1, 2)
    assert found.n_refused_without_retry_after == 1
    assert found.p50_ms == pytest.approx(505)
    assert found.refusal_p99_ms == pytest.approx(4, rel=0.02)
    assert found.goodput_per_s == 5.0


def test_a_request_of_several_images_counts_as_several():
    assert summarize([answer(n_images=8)], duration_s=2.0, slo_s=1.0).goodput_per_s == 4.0


def test_a_phase_without_answers_has_no_percentiles():
    assert math.isnan(summarize([answer(status=429)], duration_s=1.0, slo_s=1.0).p99_ms)


def closed_loop(latencies_s, duration_s):
    """Answers to clients with a constant latency each."""
    answers = []
    for latency_s in latencies_s:
        sent_s = 0.0
        while sent_s < duration_s:
            answers.append(answer(due_s=sent_s, sent_s=sent_s, done_s=sent_s + latency_s, n_images=2))
            sent_s += latency_s
    return answers


@pytest.mark.parametrize("duration_s", [3.0, 3.05, 30.0])
@pytest.mark.parametrize("latencies_s", [[0.1] * 4, [0.1, 0.2, 0.4, 0.4], [0.8, 0.7, 0.75, 0.8]])
def test_a_closed_loop_counts_while_all_clients_send(latencies_s, duration_s):
    expected = sum(2 / latency_s for latency_s in latencies_s)
    assert closed_loop_rate(closed_loop(latencies_s, duration_s)) == pytest.approx(expected)


def test_refusals_are_not_answers_and_a_single_answer_gives_no_rate():
    refused = [answer(sent_s=0.01 * n, done_s=0.01 * n + 0.001, status=429) for n in range(100)]
    assert closed_loop_rate([*closed_loop([0.1], 3.0), *refused]) == pytest.approx(20)
    for too_few in (refused, [answer(), answer()], []):
        with pytest.raises(BenchError, match="take more --seconds"):
            closed_loop_rate(too_few)


@pytest.mark.parametrize("bad", [{"status": 429}, {"status": 504}, {"status": 0}, {"done_s": 13.9}])
def test_recovery_lasts_until_the_last_request_that_was_refused_failed_or_late(bad):
    run = [
        answer(due_s=9.0, status=429),
        answer(due_s=10.0),
        answer(due_s=10.4, **{"done_s": 10.5} | bad),
        answer(due_s=11.0, done_s=11.1),
    ]

    assert recovery_s(run, fell_at_s=10.0, slo_s=1.0) == pytest.approx(0.4)
    assert recovery_s([run[0], run[1]], fell_at_s=10.0, slo_s=1.0) == 0.0
