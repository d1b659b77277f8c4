"""The simulation against exact solutions of queues, and against the service's own batcher in virtual time."""

import math

import numpy as np
import pytest

from caspl.capacity.queueing import poisson_arrivals, simulate
from tests.caspl.capacity.times import server
from tests.service.scheduler.virtual_time import VirtualService

BATCH_S = 0.1
N = 50_000


def md1_wait_cdf(wait_s, rate_per_s, batch_s):
    """P(wait <= wait_s) of M/D/1 (Erlang 1909)."""
    terms = (
        (rate_per_s * (k * batch_s - wait_s)) ** k / math.factorial(k) * math.exp(-rate_per_s * (k * batch_s - wait_s))
        for k in range(int(wait_s / batch_s) + 1)
    )
    return (1 - rate_per_s * batch_s) * sum(terms)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_batches_of_one_image_wait_as_in_m_d_1(load):
    times = server({1: BATCH_S})
    rate_per_s = load / BATCH_S

    waits_s = simulate(times, poisson_arrivals(rate_per_s, N)).latencies_s - BATCH_S

    assert waits_s.mean() == pytest.approx(load * BATCH_S / (2 * (1 - load)), rel=0.05)  # Pollaczek and Khinchine
    for wait_s in np.linspace(0.05, 5, 12) * BATCH_S:
        assert (waits_s <= wait_s).mean() == pytest.approx(md1_wait_cdf(wait_s, rate_per_s, BATCH_S), abs=0.01)


def embedded_chain(batch_s, max_rows, rate_per_s, n_states=400):
    """Mean latency and batch size of a queue whose server takes all that waits, at most `max_rows`, when it is free.

    The chain of the queue length at the ends of batches (Bailey 1954): from q, the next one is q - b plus a Poisson
    number of arrivals in the time of b. The mean wait is the mean queue length over the rate (Little 1961).
    """
    transition = np.zeros((n_states, n_states))
    for queued in range(n_states):
        rows = min(max(queued, 1), max_rows)
        left = max(queued, 1) - rows
        arrivals = rate_per_s * batch_s(rows)
        probability = math.exp(-arrivals)
        for extra in range(n_states - left):
            transition[queued, left + extra] = probability
            probability *= arrivals / (extra + 1)
        transition[queued, -1] += 1 - transition[queued].sum()
    system = np.vstack([transition.T - np.eye(n_states), np.ones(n_states)])
    share = np.linalg.lstsq(system, np.append(np.zeros(n_states), 1.0), rcond=None)[0]
    cycle_s = waited_s = served_s = mean_rows = 0.0
    for queued, one in enumerate(share):
        rows = min(max(queued, 1), max_rows)
        taken_s, left = batch_s(rows), max(queued, 1) - rows
        cycle_s += one * (taken_s + (queued == 0) / rate_per_s)
        waited_s += one * (left * taken_s + rate_per_s * taken_s**2 / 2)
        served_s += one * rows * taken_s
        mean_rows += one * rows
    return waited_s / (rate_per_s * cycle_s) + served_s / mean_rows, mean_rows


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(("fixed_s", "row_s"), [(0.05, 0.01), (0.02, 0.03), (1.0, 0.0)])
def test_batches_of_all_that_waits_agree_with_the_embedded_markov_chain(load, fixed_s, row_s):
    max_rows = 8

    def batch_s(rows):
        return fixed_s + row_s * rows

    rate_per_s = load * max_rows / batch_s(max_rows)
    unit = 1e6  # the batcher's wait for clients that return, 5 ms at most, becomes negligible
    times = server({rows: unit * batch_s(rows) for rows in range(1, max_rows + 1)})

    found = simulate(times, poisson_arrivals(rate_per_s / unit, N))

    mean_s, mean_rows = embedded_chain(batch_s, max_rows, rate_per_s)
    assert found.latencies_s.mean() / unit == pytest.approx(mean_s, rel=0.05)
    assert found.rows_per_batch == pytest.approx(mean_rows, rel=0.02)


async def batcher_latencies(batch_s, arrivals_s, n_images, **options):
    """Latencies of the service's batcher, with a device in virtual time."""
    service = VirtualService(batch_s, max_waiting=10**6, prepare_s=0.0, **options)
    sent = []
    for now_s in arrivals_s:
        service.at(now_s, lambda: sent.append(service.send("one", n_rows=n_images)))
    await service.play()
    return np.array([max(row.done_s for row in rows) - rows[0].sent_s for rows in sent])


@pytest.mark.anyio
@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize(
    ("n_concurrent", "n_pipelined"), [(1, 0), (2, 0), (1, 1)], ids=["one batch", "two cores", "accelerator"]
)
async def test_latencies_are_those_of_the_services_own_batcher(n_concurrent, n_pipelined, load, n_images):
    def batch_s(rows):
        return 0.02 + 0.01 * rows

    max_rows, n_requests = 8, 1500
    rate_per_s = load * n_concurrent * max_rows / batch_s(max_rows) / n_images
    arrivals_s = poisson_arrivals(rate_per_s, n_requests)
    times = server(
        {rows: batch_s(rows) for rows in range(1, max_rows + 1)}, n_concurrent=n_concurrent, n_pipelined=n_pipelined
    )

    found_s = simulate(times, arrivals_s, images_per_request=n_images).latencies_s
    expected_s = await batcher_latencies(
        batch_s, arrivals_s, n_images, n_runners=n_concurrent, max_rows=max_rows, pipeline_depth=n_pipelined
    )

    differences_s = np.abs(found_s - expected_s[-len(found_s) :])
    assert (differences_s > 1e-4).mean() < 0.002, "the batcher's shortest delay, but for simultaneous events"
    assert differences_s.max() < batch_s(1)


def test_two_choices_shorten_the_tail_and_a_single_server_has_none():
    times = server({1: BATCH_S})
    arrivals_s = poisson_arrivals(4 * 0.8 / BATCH_S, 20_000)

    random, chosen = (
        simulate(times, arrivals_s, n_servers=4, balancing=one).ms(99) for one in ("random", "two-choices")
    )
    alone = [simulate(times, arrivals_s * 4, balancing=one).ms(99) for one in ("random", "two-choices")]

    assert chosen < 0.7 * random
    assert alone[0] == alone[1]


def test_http_decoding_and_the_network_add_their_times_without_load():
    times = server({1: 0.1, 4: 0.2}, request_s=0.01, decode_s=0.02, network_s=0.005)

    (latency_s,) = simulate(times, np.array([0.0]), images_per_request=4).latencies_s

    assert latency_s == pytest.approx(0.01 + 2 * 0.02 + 0.2 + 0.005)  # four images on two cores


def test_a_single_image_on_an_idle_device_uses_all_cores():
    times = server({1: 0.2, 2: 0.4}, n_concurrent=2, alone_s=0.12)

    found = simulate(times, np.array([0.0, 10.0, 10.01, 20.0, 30.0])).latencies_s

    assert found == pytest.approx([0.12, 0.12, 0.2, 0.2, 0.12])  # the batch after concurrent ones does not yet


def test_decoding_slows_batches_down_that_share_its_cores():
    shared = server({1: 0.1}, decode_s=0.05, shares_cores=True)
    own = shared.model_copy(update={"shares_cores": False})
    arrivals_s = poisson_arrivals(4, 2000)

    difference_s = simulate(shared, arrivals_s).latencies_s.min() - simulate(own, arrivals_s).latencies_s.min()

    assert difference_s == pytest.approx(0.1 * (1 / (1 - 4 * 0.05 / 2) - 1), rel=0.1)


def test_more_load_than_the_cores_can_decode_is_an_error():
    times = server({1: 0.001}, decode_s=0.1, shares_cores=True)

    with pytest.raises(ValueError, match="exceed the capacity"):
        simulate(times, poisson_arrivals(30, 100))
