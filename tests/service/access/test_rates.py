import pytest

from service.access.key_file import Key
from service.access.rates import MAX_BUCKETS, RateLimits, TokenBucket
from service.errors import RateLimitedError
from service.settings import Settings


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def key(name="a" * 8, **fields):
    return Key.model_validate({"id": name, "sha256": "0" * 64, "scopes": ["classify"], **fields})


def waits(limits, *arguments):
    try:
        limits.admit(*arguments)
    except RateLimitedError as error:
        return error.retry_after_s
    return 0


def test_a_bucket_holds_its_capacity_and_refills_at_its_rate(clock):
    bucket = TokenBucket(2, 4, clock)
    for _ in range(4):
        assert bucket.wait_s(1) == 0
        bucket.spend(1)
    assert bucket.wait_s(1) == pytest.approx(0.5)
    clock.now_s += 1000
    assert bucket.wait_s(4) == 0
    bucket.spend(4)
    assert bucket.wait_s(1) == pytest.approx(0.5), "a long pause fills it once"


def test_an_amount_above_the_capacity_needs_a_full_bucket_and_leaves_a_debt(clock):
    bucket = TokenBucket(2, 4, clock)
    assert bucket.wait_s(10) == 0
    bucket.spend(10)
    assert bucket.wait_s(0) == pytest.approx(3)
    assert bucket.wait_s(10) == pytest.approx(5)


def test_requests_per_second_of_a_key_take_precedence_over_the_default(clock):
    limits = RateLimits(Settings(key_requests_per_s=1), clock)
    assert [waits(limits, key("a" * 8), 0) for _ in range(2)] == [0, 1]
    assert [waits(limits, key("b" * 8, requests_per_s=3), 0) for _ in range(4)] == [0, 0, 0, pytest.approx(1 / 3)]
    clock.now_s += 1
    assert waits(limits, key("a" * 8), 0) == 0


def test_a_changed_rate_applies_at_once(clock):
    limits = RateLimits(Settings(), clock)
    assert [waits(limits, key(requests_per_s=1), 0) for _ in range(2)] == [0, 1]
    assert waits(limits, key(requests_per_s=2), 0) == 0


def test_bytes_count_as_they_arrive_and_the_next_request_waits_for_them(clock):
    limits = RateLimits(Settings(key_bytes_per_s=1000), clock)
    count_bytes = limits.admit(key(), 0)
    for _ in range(5):
        count_bytes(1000)
    assert waits(limits, key(), 0) == pytest.approx(4)
    assert waits(limits, key("b" * 8), 500) == 0


def test_a_declared_length_is_not_charged_before_its_bytes_arrive(clock):
    limits = RateLimits(Settings(key_bytes_per_s=1000), clock)
    limits.admit(key(), 10**18)
    assert waits(limits, key(), 1000) == 0


def test_a_refused_request_costs_nothing(clock):
    limits = RateLimits(Settings(key_requests_per_s=1), clock)
    limits.admit(key(), 0)
    assert [waits(limits, key(), 0) for _ in range(10)] == [1] * 10


def test_there_are_no_limits_by_default():
    limits = RateLimits(Settings())
    assert [limits.admit(key(), 10**9) for _ in range(1000)] == [None] * 1000


def fails(limits, address, n):
    return [waits_for(limits, address) for _ in range(n)]


def waits_for(limits, address):
    try:
        limits.count_failure(address)
    except RateLimitedError as error:
        return error.retry_after_s
    return 0


def test_ten_wrong_keys_per_minute_and_address(clock):
    limits = RateLimits(Settings(), clock)
    assert fails(limits, "10.0.0.1", 11) == [0] * 10 + [pytest.approx(6)]
    assert fails(limits, "10.0.0.2", 1) == [0]
    clock.now_s += 60
    assert fails(limits, "10.0.0.1", 11) == [0] * 10 + [pytest.approx(6)]


def test_ipv6_addresses_of_one_network_share_a_limit(clock):
    limits = RateLimits(Settings(max_failed_keys_per_minute=1), clock)
    assert fails(limits, "2001:db8::1", 1) == [0]
    assert fails(limits, "2001:db8::ffff:1", 1) == [pytest.approx(60)]
    assert fails(limits, "2001:db8:0:1::1", 1) == [0]


def test_memory_is_bounded_however_many_addresses_there_are(clock):
    limits = RateLimits(Settings(), clock)
    for number in range(3 * MAX_BUCKETS):
        limits.count_failure(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert limits._address_bucket.cache_info().currsize == MAX_BUCKETS


def test_many_addresses_do_not_reset_the_limit_of_a_key(clock):
    limits = RateLimits(Settings(key_requests_per_s=1), clock)
    limits.admit(key(), 0)
    for number in range(2 * MAX_BUCKETS):
        limits.count_failure(f"10.0.{number >> 8}.{number & 255}")
    assert waits(limits, key(), 0) == 1
