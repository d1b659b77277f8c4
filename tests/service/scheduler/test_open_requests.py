import pytest

from service.errors import OverloadedError
from service.scheduler.open_requests import OpenRequests


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def fill(requests, domain="a", timeout_s=1.0):
    """Open requests until one is refused; returns their number."""
    n_opened = 0
    while requests.has_room(domain, timeout_s):
        requests.open(domain, timeout_s)
        n_opened += 1
    return n_opened


def answer(requests, clock, *, n_open, interval_s, n=300):
    """Answer requests at a constant rate while `n_open` are open."""
    for _ in range(n_open):
        requests.open("a", 1e6)
    for _ in range(n):
        clock.now_s += interval_s
        requests.close("a", is_answered=True)
        requests.open("a", 1e6)
    for _ in range(n_open):
        requests.close("a", is_answered=False)


@pytest.mark.parametrize("max_open", [1, 2, 3, 10, 256])
def test_one_domain_alone_gets_the_limit_and_another_still_finds_room(max_open):
    requests = OpenRequests(max_open, 1, lambda: 0.0)
    assert fill(requests) == max_open
    assert requests.has_room("b", 1.0) == (max_open > 2)
    with pytest.raises(OverloadedError, match="places for requests are in use"):
        requests.open("a", 1.0)
    requests.close("a", is_answered=True)
    requests.open("a", 1.0)


def test_as_many_are_open_as_are_answered_within_half_of_the_timeout(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    assert fill(requests, timeout_s=1.0) == pytest.approx(50, abs=1)
    assert fill(requests, timeout_s=4.0) == pytest.approx(150, abs=1), "in addition"
    assert requests.has_room("b", 4.0)


def test_a_batch_may_always_be_open(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=5.0)
    assert fill(requests) == 4


def test_few_open_requests_show_no_rate(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=3, interval_s=5.0)
    assert fill(requests) == 1000


def test_an_idle_time_is_no_slow_answer(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    clock.now_s += 1000
    answer(requests, clock, n_open=20, interval_s=0.01, n=1)
    assert fill(requests) == pytest.approx(50, abs=1)


def test_requests_without_an_answer_do_not_raise_the_rate(clock):
    requests = OpenRequests(1000, 4, clock)
    answer(requests, clock, n_open=20, interval_s=0.01)
    for _ in range(100):
        requests.open("a", 1.0)
        requests.close("a", is_answered=False)
    assert fill(requests) == pytest.approx(50, abs=1)
