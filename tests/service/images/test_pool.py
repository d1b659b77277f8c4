"""Decoding threads: the order of tenants, and how much runs at the same time."""

import asyncio
import threading

import pytest

from service.images.pool import SMALL_BYTES, FairThreadPool

pytestmark = pytest.mark.anyio
LARGE = 10 * SMALL_BYTES


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Jobs:
    """Jobs that note when they start, and each wait for the others' gate."""

    def __init__(self, n_threads=1, max_bytes=2 * LARGE):
        self.pool = FairThreadPool(n_threads, max_bytes)
        self.started = []
        self.gates = {}

    def put(self, name, tenant="a", n_bytes=LARGE):
        gate = self.gates[name] = threading.Event()

        def job():
            self.started.append(name)
            gate.wait(10)
            return name

        return asyncio.ensure_future(self.pool.run(job, tenant=tenant, n_bytes=n_bytes))

    async def running(self, *names):
        """Wait until these jobs have started, in any order of the threads, and check that no others have."""
        for _ in range(1_000):
            if len(self.started) >= len(names):
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert sorted(self.started) == sorted(names)

    async def finish(self, tasks):
        await asyncio.sleep(0)  # the last jobs are put, too
        for gate in self.gates.values():
            gate.set()
        return await asyncio.gather(*tasks)


async def test_tenants_take_turns_and_a_tenant_alone_is_first_in_first_out():
    jobs = Jobs()
    tasks = [jobs.put(f"a{n}") for n in range(4)]
    await asyncio.sleep(0)
    tasks += [jobs.put(f"{tenant}{n}", tenant) for n in range(2) for tenant in "bc"]
    await jobs.finish(tasks)
    assert jobs.started == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "a3"]


async def test_tenants_share_bytes_rather_than_numbers_of_images():
    jobs = Jobs()
    tasks = [jobs.put(f"a{n}") for n in range(3)]
    await asyncio.sleep(0)
    tasks += [jobs.put(f"b{n}", "b", LARGE // 2) for n in range(5)]
    await jobs.finish(tasks)
    assert jobs.started == ["a0", "b0", "b1", "a1", "b2", "b3", "a2", "b4"]


async def test_large_jobs_that_do_not_fit_in_memory_together_wait_and_small_ones_pass():
    jobs = Jobs(n_threads=3)
    tasks = [jobs.put(f"a{n}") for n in range(3)]
    await jobs.running("a0", "a1")
    tasks += [jobs.put("small", "b", SMALL_BYTES), jobs.put("b", "b")]
    await jobs.running("a0", "a1", "small")
    jobs.gates["a0"].set()
    await jobs.running("a0", "a1", "small", "b")
    await jobs.finish(tasks)


async def test_a_job_above_the_memory_limit_runs_without_other_large_ones():
    jobs = Jobs(n_threads=2, max_bytes=LARGE)
    tasks = [jobs.put("first"), jobs.put("huge", "b", 3 * LARGE)]
    await jobs.running("first")
    jobs.gates["first"].set()
    tasks += [jobs.put("next", "c")]
    await jobs.running("first", "huge")
    await jobs.finish(tasks)
    assert jobs.started == ["first", "huge", "next"]


async def test_a_large_job_that_ends_makes_room_for_several():
    jobs = Jobs(n_threads=4)
    tasks = [jobs.put("huge", n_bytes=2 * LARGE), *(jobs.put(name, n_bytes=LARGE // 2) for name in "abcd")]
    await jobs.running("huge")
    jobs.gates["huge"].set()
    await jobs.running("huge", "a", "b", "c", "d")
    await jobs.finish(tasks)


async def test_a_job_waits_no_longer_for_one_whose_caller_has_gone():
    jobs = Jobs(n_threads=3)
    tasks = [jobs.put("first"), jobs.put("huge", n_bytes=2 * LARGE), jobs.put("last")]
    await jobs.running("first")
    tasks.pop(1).cancel()
    await jobs.running("first", "last")
    await jobs.finish(tasks)


async def test_large_jobs_leave_a_thread_to_small_ones():
    jobs = Jobs(n_threads=2)
    tasks = [jobs.put("a0"), jobs.put("a1"), jobs.put("small", "b", 1)]
    await jobs.running("a0", "a1", "small")
    await jobs.finish(tasks)


async def test_no_more_small_jobs_run_than_there_are_threads():
    jobs = Jobs(n_threads=2)
    tasks = [jobs.put(f"a{n}", n_bytes=1) for n in range(4)]
    await jobs.running("a0", "a1")
    await jobs.finish(tasks)


async def test_a_job_whose_caller_has_gone_never_runs():
    jobs = Jobs()
    tasks = [jobs.put(name) for name in ("first", "gone", "last")]
    await jobs.running("first")
    tasks.pop(1).cancel()
    assert await jobs.finish(tasks) == ["first", "last"]
    assert jobs.started == ["first", "last"]


async def test_a_running_job_keeps_its_memory_until_it_ends_though_its_caller_has_gone():
    jobs = Jobs(n_threads=2, max_bytes=LARGE)
    gone = jobs.put("gone")
    await jobs.running("gone")
    gone.cancel()
    after = jobs.put("after")
    await jobs.running("gone")
    assert await jobs.finish([after]) == ["after"]


async def test_a_job_that_fails_gives_its_error_and_its_thread_goes_on():
    pool = FairThreadPool(1, LARGE)
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0, tenant="a", n_bytes=1)
    assert await pool.run(lambda: 1, tenant="a", n_bytes=1) == 1


async def test_closing_cancels_waiting_jobs():
    jobs = Jobs()
    tasks = [jobs.put("running"), jobs.put("waiting")]
    await jobs.running("running")
    jobs.pool.close()
    with pytest.raises(asyncio.CancelledError):
        await jobs.finish(tasks[1:])
    assert await tasks[0] == "running"


async def test_closing_lets_every_job_finish_that_was_started():
    for _ in range(50):
        pool = FairThreadPool(4, LARGE)
        tasks = [asyncio.ensure_future(pool.run(int, tenant="a", n_bytes=1)) for _ in range(4)]
        await asyncio.sleep(0)
        pool.close()
        async with asyncio.timeout(10):
            assert await asyncio.gather(*tasks) == [0] * 4


async def test_tenants_without_jobs_are_forgotten():
    pool = FairThreadPool(1, LARGE)
    for n in range(1_000):
        await pool.run(int, tenant=n, n_bytes=LARGE)
    assert len(vars(pool)["_next_tag"]) <= 1
