"""The engine with concurrent batches: one per core, or a single one on all cores."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine
from tests.service.engine.engine_rows import predictions, rows_of, until
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

pytestmark = pytest.mark.anyio


class Cores:
    """An engine over a tiny model; records the threads of its batches, which can be blocked."""

    def __init__(self, n_cores, **options):
        self.model = PromptedClip(tiny_backbone(), num_streams=n_cores)
        self.seen = []
        self.gate = threading.Event()
        self.gate.set()
        self.rank = rank = self.model.rank

        def noted(pixels, stacks, top_ks, **options):
            name = threading.current_thread().name.split("_")[0]
            self.seen.append((name, len(stacks), torch.get_num_threads()))
            assert self.gate.wait(20)
            return rank(pixels, stacks, top_ks, **options)

        self.model.rank = noted
        self.engine = Engine(self.model, **options)
        self.stack = None

    def start(self, n_rows=1):
        return asyncio.ensure_future(self.engine.run(rows_of([self.stack] * n_rows)))

    async def have_begun(self, n_batches):
        await until(lambda: len(self.seen) >= n_batches)
        await asyncio.sleep(0.1)  # time enough for one more, if it were let
        assert len(self.seen) == n_batches


@pytest.fixture
def cores_of():
    """Makes engines with a number of streams while torch sees three cores."""
    before, made = torch.get_num_threads(), []
    torch.set_num_threads(3)

    async def make(n_cores, **options):
        made.append(cores := Cores(n_cores, **options))
        bundle = read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3)))
        cores.stack = await cores.engine.load(bundle)
        return cores

    yield make
    for cores in made:
        cores.gate.set()
        cores.engine.close()
    torch.set_num_threads(before)


async def test_a_single_batch_uses_all_cores_and_concurrent_batches_one_each(cores_of):
    cores = await cores_of(3)
    await cores.start(n_rows=2)
    assert cores.seen == [("device", 2, 3)]
    cores.gate.clear()
    running = [cores.start()]
    await cores.have_begun(2)
    running.append(cores.start())
    await cores.have_begun(3)
    cores.gate.set()
    await asyncio.gather(*running)
    assert cores.seen[1:] == [("device", 1, 3), ("core", 1, 1)]
    await cores.start()
    await cores.start()
    assert cores.seen[3:] == [("core", 1, 1), ("device", 1, 3)], "only the call after concurrent ones stays on one core"


async def test_simultaneous_batches_use_one_core_each_and_never_more_than_there_are(cores_of):
    cores = await cores_of(2)
    cores.gate.clear()
    running = [cores.start() for _ in range(3)]
    await cores.have_begun(2)
    assert cores.seen == [("core", 1, 1)] * 2
    cores.gate.set()
    await asyncio.gather(*running)
    assert len(cores.seen) == 3


async def test_a_batch_on_all_cores_counts_as_one_running_batch(cores_of):
    cores = await cores_of(2)
    cores.gate.clear()
    running = [cores.start()]
    await cores.have_begun(1)
    running += [cores.start(), cores.start()]
    await cores.have_begun(2)
    assert [name for name, *_ in cores.seen] == ["device", "core"]
    cores.gate.set()
    await asyncio.gather(*running)


async def test_a_cancelled_call_counts_as_running_until_it_ends(cores_of):
    cores = await cores_of(2)
    cores.gate.clear()
    left = cores.start()
    await cores.have_begun(1)
    left.cancel()
    await asyncio.sleep(0.05)
    running = cores.start()
    await cores.have_begun(2)
    assert [name for name, *_ in cores.seen] == ["device", "core"]
    cores.gate.set()
    await running


async def test_a_call_cancelled_before_it_starts_does_not_count(cores_of):
    cores = await cores_of(2)
    given_up = cores.start()
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await cores.start()
    assert cores.seen == [("device", 1, 3)], "it runs alone"


async def test_a_batch_with_a_row_per_core_uses_one_core(cores_of):
    cores = await cores_of(3)
    await cores.start(n_rows=3)
    assert cores.seen == [("core", 3, 1)]


async def test_concurrent_batches_give_the_answers_of_single_ones_with_a_bank_of_one_slot():
    engine = Engine(PromptedClip(tiny_backbone(), num_streams=3, bank_slots=1))
    bundles = [
        random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), seed=1),
        random_bundle("dogs", ("rex", "ace", "pug", "lab"), image_boost=(3, 3), seed=2),
        random_bundle("birds", ("owl", "jay", "tit"), image_boost=(1, 3), seed=3),
    ]
    stacks = [await engine.load(read_bundle(data)) for data in bundles]
    batches = [rows_of([stacks[(n + row) % 3] for row in range(4)]) for n in range(12)]
    alone = [await predictions(engine, batch) for batch in batches]
    together = await asyncio.gather(*(predictions(engine, batch) for batch in batches))
    engine.close()
    for one, other in zip(alone, together, strict=True):
        for mixed, single in zip(one, other, strict=True):
            assert [prediction.label for prediction in mixed] == [prediction.label for prediction in single]
            np.testing.assert_allclose(
                [prediction.probability for prediction in mixed],
                [prediction.probability for prediction in single],
                atol=1e-5,
            )


async def test_one_core_that_hangs_is_stuck_while_the_others_go_on(cores_of):
    cores = await cores_of(2, stuck_after_s=5)
    engine = cores.engine
    cores.gate.clear()
    hanging = cores.start()
    await cores.have_begun(1)
    cores.model.rank = cores.rank
    for _ in range(3):
        assert not engine.activity.is_stuck
        await cores.start()
        engine.activity.tick(2)
    assert engine.activity.is_stuck
    cores.gate.set()
    await hanging
    assert not engine.activity.is_busy
    assert not engine.activity.is_stuck
