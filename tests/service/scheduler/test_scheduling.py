"""Many clients on one device, in virtual time: fairness, priorities, overload, recovery, closed loops."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduler.queue import MAX_PASSED
from tests.service.scheduler.virtual_time import VirtualService

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Device:
    """What batches take, and how many run side by side."""

    batch_s: Callable[[int], float]
    n_runners: int = 1

    @property
    def full_s(self):
        """Seconds for 32 rows, on all runners."""
        return self.batch_s(32 // self.n_runners)


SLOW = Device(lambda n: 0.02 + 0.03 * n)
DEVICES = {
    "accelerator": Device(lambda n: 0.0501 + 0.0028 * n),
    "two cores": Device(lambda n: 0.008 + 0.043 * n, n_runners=2),
}
devices = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)


def service_of(device, *, max_rows=32, max_waiting=128, **options):
    n_runners = device.n_runners
    return VirtualService(
        device.batch_s, n_runners=n_runners, max_rows=max_rows // n_runners, max_waiting=max_waiting, **options
    )


def send_randomly(service, tenant, per_s, from_s, to_s, *, seed=0, **options):
    """Open-loop arrivals without a pattern."""
    chance, now_s = random.Random(seed), from_s  # noqa: S311
    while (now_s := now_s + chance.expovariate(per_s)) < to_s:
        service.at(now_s, lambda: service.send(tenant, **options))


def goodput(service, from_s, to_s):
    """Rows per second that were answered in time."""
    return sum(row.is_good and from_s <= row.done_s < to_s for row in service.sent) / (to_s - from_s)


@devices
@pytest.mark.parametrize("n_hot", [1, 3, 10])
async def test_a_tenant_within_its_share_waits_for_two_batches_at_most_and_is_never_refused(device, n_hot):
    service = service_of(device)
    full_s = device.full_s
    share = 32 / full_s / (n_hot + 1)
    for tenant in range(n_hot):
        send_randomly(service, tenant, 10 * share, 0, 40 * full_s, seed=tenant)
    service.send_steadily("small", 0.5 * share, 10 * full_s, 40 * full_s)
    await service.play()
    small = [row for row in service.sent if row.tenant == "small"]
    assert len(small) > 40
    assert not any(row.error for row in small)
    assert max(row.began_s - row.sent_s for row in small) <= 2.01 * full_s
    hot = Counter(row.tenant for row in service.sent if row.tenant != "small" and not row.error)
    assert max(hot.values()) <= 1.1 * min(hot.values()), "those that send alike get alike"


@devices
async def test_what_a_small_tenant_leaves_over_goes_to_the_hot_one(device):
    service = service_of(device)
    capacity = 32 / device.full_s
    send_randomly(service, "hot", 3 * capacity, 0, 20, timeout_s=30)
    send_randomly(service, "small", 0.1 * capacity, 0, 20, timeout_s=30, seed=1)
    await service.play()
    assert goodput(service, 5, 20) > 0.97 * capacity


@pytest.mark.parametrize("keys", [("a", "a", "a"), ("a", "b", "c")])
async def test_a_flood_of_urgent_rows_neither_waits_for_others_nor_starves_them(keys):
    service = service_of(SLOW, max_waiting=512)
    full_s = SLOW.full_s
    capacity = 32 / full_s
    for priority, key in zip((1, 0, -1), keys, strict=True):
        send_randomly(service, priority, 1.5 * capacity, 0, 100 * full_s, key=key, priority=priority, seed=priority)
    await service.play(100 * full_s)
    led_by = Counter(max(batch, key=lambda row: row.priority).priority for batch in service.batches)
    shares = Counter(row.priority for batch in service.batches for row in batch)
    assert shares[1] > 0.7 * shares.total()
    assert min(shares[0], shares[-1]) > shares.total() / (2 * (MAX_PASSED + 2))
    assert led_by[1] >= led_by[0] + led_by[-1]


@pytest.mark.parametrize("priority", [1, 0])
async def test_an_urgent_row_passes_everything_that_waits_below_it(priority):
    service = service_of(Device(lambda n: 1.0), max_rows=4)
    service.at(0, lambda: service.send("many", n_rows=40, priority=priority - 1))
    service.at(0.5, lambda: service.send("one", priority=priority))
    await service.play()
    (urgent,) = (row for row in service.sent if row.tenant == "one")
    assert urgent.began_s == 1.0, "after the batch that runs"


calls = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from("abc"),
        "key": st.sampled_from(["cheap", "other", "costly"]),
        "priority": st.sampled_from([-1, 0, 1]),
        "timeout_s": st.sampled_from([0.0, 1.0, 5.0, 50.0]),
        "n_rows": st.integers(1, 9),
    }
)
traffic = st.lists(st.tuples(st.floats(0, 20), calls, st.none() | st.floats(0, 5)), max_size=40)
"""When, what, and after how many seconds the caller gives up, if it does."""


@settings(deadline=None, max_examples=100)
@given(traffic, st.sampled_from([1, 3, 8]), st.sampled_from([9, 20]), st.sampled_from([1, 3]))
async def test_every_row_is_settled_once_whatever_comes(calls, max_rows, max_waiting, n_runners):
    service = VirtualService(
        lambda n: 0.2 + 0.1 * n, n_runners=n_runners, max_rows=max_rows, max_waiting=max_waiting, max_cost=10
    )

    def send(call, gives_up_s):
        rows = service.send(**call, cost=4 if call["key"] == "costly" else 0)
        if gives_up_s is not None:
            service.at(service.now_s + gives_up_s, lambda: [row.future and row.future.cancel() for row in rows])

    for when_s, call, gives_up_s in calls:
        service.at(when_s, lambda call=call, gives_up_s=gives_up_s: send(call, gives_up_s))
    await service.play()
    assert [row.n_settled for row in service.sent] == [1] * len(service.sent)
    assert service.batcher.n_queued == 0
    ran = [id(row) for batch in service.batches for row in batch]
    assert len(set(ran)) == len(ran)
    for batch in service.batches:
        assert 0 < len(batch) <= max_rows
        assert len({row.key for row in batch}) == 1
        assert sum(row.cost for row in batch) <= 10
    for line in {(row.tenant, row.key, row.priority) for row in service.sent}:
        of_line = [row for batch in service.batches for row in batch if (row.tenant, row.key, row.priority) == line]
        assert [row.sent_s for row in of_line] == sorted(row.sent_s for row in of_line)
    assert all(row.done_s == row.sent_s and row.error.retry_after_s >= 0 for row in service.sent if row.is_refused)


@devices
@pytest.mark.parametrize("n_tenants", [1, 32])
@pytest.mark.parametrize("patience", [3, 10], ids=lambda n: f"{n} batches of time")
async def test_at_three_times_its_capacity_the_service_does_nine_tenths_of_its_best(device, n_tenants, patience):
    full_s = device.full_s
    service = service_of(device)
    chance = random.Random(7)  # noqa: S311
    service.batch_s = lambda n: device.batch_s(n) * chance.uniform(0.8, 1.2)
    capacity = 32 / full_s
    for tenant in range(n_tenants):
        send_randomly(
            service, tenant, 3 * capacity / n_tenants, 0, 60 * full_s, timeout_s=patience * full_s, seed=tenant
        )
    await service.play()
    assert goodput(service, 10 * full_s, 60 * full_s) >= 0.9 * capacity
    refused = [row for row in service.sent if row.is_refused]
    assert all(row.done_s == row.sent_s for row in refused), "a refusal waits for nothing"
    assert all(0 <= row.error.retry_after_s <= max(9, 1.5 * patience) * full_s for row in refused)
    admitted = [row for row in service.sent if not row.is_refused]
    in_time = sum(row.is_good for row in admitted) / len(admitted)
    assert in_time >= (0.8 if patience == 3 else 0.93), "what is late after all never reaches the device"
    assert all(row.began_s is None or row.began_s < row.deadline_s for row in service.sent)


@devices
async def test_after_an_overload_all_is_as_before_within_the_time_of_one_full_queue(device):
    full_s = device.full_s
    service = service_of(device)
    capacity = 32 / full_s
    ends_s = 40 * full_s
    recovered_s = ends_s + (128 / 32 + 2) * full_s
    send_randomly(service, "a", 3 * capacity, 0, ends_s, timeout_s=100 * full_s)
    send_randomly(service, "a", 0.3 * capacity, ends_s, ends_s + 60 * full_s, timeout_s=100 * full_s, seed=1)
    await service.play()
    after = [row for row in service.sent if row.sent_s >= recovered_s]
    assert len(after) > 100
    assert not any(row.error for row in after)
    assert max(row.done_s - row.sent_s for row in after) <= 2 * full_s


def on_one_core(n_rows):
    """Seconds of a batch of ViT-B/16 on one of two cores."""
    return 0.057 if n_rows == 1 else 0.002 + 0.045 * n_rows


async def closed_loop(batch_s, n_clients, n_runners, *, back_s=0.001, until_s=20, **options):
    """Rows per second of clients that send the next row a moment after an answer."""
    service = VirtualService(batch_s, n_runners=n_runners, **options)
    chance, free_s = random.Random(0), [0.0]  # noqa: S311

    def send(client):
        (row,) = service.send(client)
        row.future.add_done_callback(lambda _: come_back(client))

    def come_back(client):
        free_s[0] = max(free_s[0], service.now_s) + back_s * chance.uniform(0.7, 1.3)
        service.at(free_s[0], lambda: send(client))

    for client in range(n_clients):
        service.at(0.01 * chance.random(), lambda client=client: send(client))
    await service.play(until_s)
    await service.stop()
    begin_s = until_s / 4
    return sum(row.done_s is not None and begin_s <= row.done_s < until_s for row in service.sent) / (until_s - begin_s)


@pytest.mark.parametrize(
    ("batch_s", "n_clients", "n_runners", "per_s"),
    [
        (on_one_core, 1, 2, 17),
        (on_one_core, 2, 2, 34),
        (on_one_core, 4, 2, 35),
        (on_one_core, 8, 2, 43),
        (lambda n: 0.05 + 0.003 * n, 4, 1, 49),
        (lambda n: 0.05 + 0.003 * n, 16, 1, 108),
    ],
    ids=[
        "one on two cores",
        "two on two cores",
        "four on two cores",
        "eight on two cores",
        "four, slow start",
        "16, slow start",
    ],
)
async def test_clients_that_send_one_row_after_another_share_batches(batch_s, n_clients, n_runners, per_s):
    assert await closed_loop(batch_s, n_clients, n_runners) >= per_s


def on_a_gpu(n_rows):
    """Seconds of a batch: 64 rows take 10 ms."""
    return 0.002 + 0.000125 * n_rows


@pytest.mark.parametrize(("n_clients", "gain"), [(16, 1.25), (64, 1.0), (100, 1.1)])
async def test_a_pipelined_device_idles_less_while_batches_are_prepared(n_clients, gain):
    options = {"back_s": 0.00002, "until_s": 2, "max_rows": 64, "max_waiting": 512, "prepare_s": 0.0015}
    alone = await closed_loop(on_a_gpu, n_clients, 1, **options)
    assert await closed_loop(on_a_gpu, n_clients, 1, pipeline_depth=1, **options) >= gain * alone
