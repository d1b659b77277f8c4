"""Torn and stale answers are found, latencies count from when a request was due, and recovery is what it says."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.answers import Answer, Change, busy_rate, images_between, is_stale, is_torn, recovery_s, summarize
from benchmarks.errors import BenchError
from benchmarks.tags import domain_name, label, source_of

DOMAIN, OTHER = domain_name(0), domain_name(1)
DIGESTS = {(DOMAIN, 1): "sha256:a", (DOMAIN, 2): "sha256:b", (OTHER, 1): "sha256:c"}


def answer(**changes):
    """A good answer of the first domain's version 1, due at 10 s and there at 10.2 s."""
    whole = Answer(10.0, 10.1, 10.2, 200, DOMAIN, DOMAIN, 1, "sha256:a", (label(DOMAIN, 1, 3), label(DOMAIN, 1, 0)))
    return dataclasses.replace(whole, **changes)


@given(index=st.integers(0, 99_999), version=st.integers(1, 999), class_id=st.integers(0, 999))
def test_a_label_says_where_it_comes_from(index, version, class_id):
    assert source_of(label(domain_name(index), version, class_id)) == (domain_name(index), version)


def test_an_answer_of_one_version_is_whole():
    assert not is_torn(answer(), DIGESTS)


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
def test_an_answer_put_together_from_two_is_torn(planted):
    assert is_torn(answer(**planted), DIGESTS)


CHANGES = [Change(DOMAIN, 1, -math.inf, -math.inf), Change(DOMAIN, 2, 10.0, 11.0), Change(DOMAIN, 3, 20.0, 21.0)]


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
    assert is_stale(answer(sent_s=sent_s, done_s=done_s, version=version), CHANGES) is expected


def test_a_domain_that_nobody_changed_is_never_stale():
    assert not is_stale(answer(domain=OTHER), CHANGES)


def test_a_latency_counts_from_when_the_request_was_due():
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

    counts = (found.n_requests, found.n_answered, found.n_refused, found.n_expired, found.n_failed)
    assert counts == (105, 100, 2, 1, 2)
    assert found.n_refused_without_retry_after == 1
    assert found.percentiles_ms["p50"] == pytest.approx(505)
    assert found.refusal_p99_ms == pytest.approx(4, rel=0.02)
    assert (found.offered_per_s, found.answered_per_s, found.goodput_per_s) == (10.5, 10.0, 5.0)


def test_a_request_of_several_images_counts_as_several():
    assert summarize([answer(n_images=8)], duration_s=2.0, slo_s=1.0).answered_per_s == 4.0


def test_a_phase_without_answers_has_no_percentiles():
    assert math.isnan(summarize([answer(status=429)], duration_s=1.0, slo_s=1.0).percentiles_ms["p99"])


def closed_loop(latencies_s, duration_s):
    """What clients see of a service that answers each of them after its own latency."""
    answers = []
    for latency_s in latencies_s:
        sent_s = 0.0
        while sent_s < duration_s:
            answers.append(answer(due_s=sent_s, sent_s=sent_s, done_s=sent_s + latency_s, n_images=2))
            sent_s += latency_s
    return answers


@pytest.mark.parametrize("duration_s", [3.0, 3.05, 30.0])
@pytest.mark.parametrize("latencies_s", [[0.1] * 4, [0.1, 0.2, 0.4, 0.4], [0.8, 0.7, 0.75, 0.8]])
def test_a_closed_loop_counts_while_all_of_its_clients_are_there(latencies_s, duration_s):
    expected = sum(2 / latency_s for latency_s in latencies_s)
    assert busy_rate(closed_loop(latencies_s, duration_s)) == pytest.approx(expected)


def test_answers_that_come_in_groups_out_of_step_count_once():
    first = [answer(sent_s=0.0, done_s=0.2, n_images=8)]
    pairs = [answer(sent_s=0.0, done_s=0.4, n_images=8), answer(sent_s=0.2, done_s=0.8, n_images=8)]
    for n in range(1, 20):
        pairs += [answer(sent_s=0.4 * n, done_s=0.4 * n + 0.8, n_images=8)] * 2
    assert busy_rate([*first, *pairs]) == pytest.approx(40, rel=0.06)


@given(st.floats(0.05, 0.35), st.floats(0.05, 0.35))
def test_groups_whose_running_time_is_known_count_exactly_wherever_the_stretch_is_cut(begins_after_s, ends_early_s):
    """Two cores out of step, eight images in 0.4 s each, that are asked for as long before as one batch takes."""
    groups = [
        answer(sent_s=0.4 * n + late_s - 0.4, done_s=0.4 * (n + 1) + late_s, ran_s=0.4)
        for n in range(-2, 25)
        for late_s in (0.0, 0.2)
        for _ in range(8)
    ]
    end_s = 8.0 - ends_early_s
    assert images_between(groups, begins_after_s, end_s) == pytest.approx(40 * (end_s - begins_after_s))


@pytest.mark.parametrize("are_in_step", [True, False])
def test_requests_of_several_images_count_evenly_over_their_batches(are_in_step):
    """Four clients with eight images each; a batch of eight, two of every client's, takes 0.2 s: 40 images/s."""
    lates_s = [0.0] * 4 if are_in_step else [0.0, 0.2, 0.4, 0.6]
    answers = [
        answer(sent_s=0.8 * n + late_s, done_s=0.8 * (n + 1) + late_s, n_images=8, ran_s=0.2)
        for n in range(6)
        for late_s in lates_s
    ]
    assert busy_rate(answers) == pytest.approx(40, rel=0.08)


def test_the_last_answers_do_not_count_where_a_client_has_stopped():
    busy = [answer(sent_s=now_s, done_s=now_s + 0.5) for now_s in (0.0, 0.0, 0.5, 0.5, 1.0, 1.0)]
    last = [answer(sent_s=1.5, done_s=9.0)]
    assert busy_rate([*busy, *last]) == pytest.approx(4)


def test_refusals_are_no_answers_and_without_a_second_answer_there_is_no_rate():
    refused = [answer(sent_s=0.01 * n, done_s=0.01 * n, status=429) for n in range(100)]
    assert busy_rate([*closed_loop([0.1], 3.0), *refused]) == pytest.approx(20)
    for too_few in (refused, [answer(), answer()], []):
        with pytest.raises(BenchError, match="Take more --seconds"):
            busy_rate(too_few)


@pytest.mark.parametrize("bad", [{"status": 429}, {"status": 504}, {"status": 0}, {"done_s": 13.9}])
def test_recovery_lasts_until_the_last_request_that_was_refused_failed_or_late(bad):
    run = [
        answer(due_s=9.0, status=429),
        answer(due_s=10.0),
        answer(due_s=10.4, **{"done_s": 10.5} | bad),
        answer(due_s=11.0, done_s=11.1),
    ]

    assert recovery_s(run, fell_at_s=10.0, slo_s=1.0) == pytest.approx(0.4)


def test_a_service_that_answers_at_once_needs_no_time_to_recover():
    assert recovery_s([answer(due_s=9.9, status=429), answer(due_s=10.0)], fell_at_s=10.0, slo_s=1.0) == 0.0
