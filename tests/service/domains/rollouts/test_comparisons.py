"""Which requests take part in a rollout."""

import math
import random

import pytest

from service.domains.rollouts.comparisons import position
from service.http.middleware.request import new_request_id

DIGESTS = ["sha256:" + digit * 64 for digit in "07af"]
N_REQUESTS = 20_000


@pytest.mark.parametrize("digest", DIGESTS)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.1, 0.5, 0.99])
def test_the_share_of_requests_is_the_percentage_within_binomial_bounds(digest, share):
    n_taken = sum(position(digest, f"req-{number:016x}") < share for number in range(N_REQUESTS))
    bound = 5 * math.sqrt(share * (1 - share) / N_REQUESTS)
    assert abs(n_taken / N_REQUESTS - share) < bound


def test_all_requests_take_part_at_100_percent_and_random_ids_are_spread_evenly():
    random.seed(0)
    positions = sorted(position(DIGESTS[0], new_request_id()) for _ in range(4000))
    assert positions[0] >= 0
    assert positions[-1] < 1
    largest = max(abs(one - number / 4000) for number, one in enumerate(positions))
    assert largest < 0.035  # of Kolmogorov and Smirnov, exceeded once in 10,000 draws


def test_a_request_that_takes_part_still_does_when_the_share_is_raised():
    taken = {share: {n for n in range(2000) if position(DIGESTS[1], str(n)) < share} for share in (0.1, 0.3, 1.0)}
    assert taken[0.1] < taken[0.3] < taken[1.0] == set(range(2000))


def test_candidates_get_different_requests():
    first, second = ({n for n in range(2000) if position(one, str(n)) < 0.5} for one in DIGESTS[:2])
    assert 0.4 < len(first & second) / len(first) < 0.6
