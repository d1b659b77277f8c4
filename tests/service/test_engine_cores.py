"""The engine on several cores: batches side by side, and one alone on all of them."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from service.engine import Engine
from tests.service.engine_rows import rows_of, until
from tests.stacks import random_bundle
from tests.tiny import tiny_backbone

pytestmark = pytest.mark.anyio


class Cores:
    """A tiny model for several cores that notes who computes; may be held."""

    def __init__(self, n_cores):
        self.model = PromptedClip(tiny_backbone(), n_at_once=n_cores)
        self.seen = []
        self.gate = threading.Event()
        self.gate.set()
        self.rank = rank = self.model.rank

        def noted(pixels, stacks, top_ks):
            name = threading.current_thread().name.split("_")[0]
            self.seen.append((name, len(stacks), torch.get_num_threads()))
            assert self.gate.wait(20)
            return rank(pixels, stacks, top_ks)

        self.model.rank = noted


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
async def test_a_batch_alone_takes_all_cores_and_batches_that_meet_one_each():
    cores = Cores(3)
    engine = Engine(cores.model)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    await engine.run(rows_of([stack] * 2))
    assert cores.seen == [("device", 2, 3)]
    cores.gate.clear()
    running = [asyncio.ensure_future(engine.run(rows_of([stack])))]
    await until(lambda: len(cores.seen) == 2)
    running.append(asyncio.ensure_future(engine.run(rows_of([stack]))))
    await until(lambda: len(cores.seen) == 3)
    cores.gate.set()
    await asyncio.gather(*running)
    assert cores.seen[1:] == [("device", 1, 3), ("core", 1, 1)]
    await engine.run(rows_of([stack]))
    await engine.run(rows_of([stack]))
    assert cores.seen[3:] == [("core", 1, 1), ("device", 1, 3)], "the next may have company again, the one after not"
    engine.close()


@pytest.mark.usefixtures("three_threads")
async def test_batches_of_one_moment_take_a_core_each_and_never_more_than_there_are():
    cores = Cores(2)
    engine = Engine(cores.model)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    cores.gate.clear()
    running = [asyncio.ensure_future(engine.run(rows_of([stack]))) for _ in range(3)]
    await until(lambda: len(cores.seen) == 2)
    await asyncio.sleep(0.1)
    assert cores.seen == [("core", 1, 1)] * 2
    cores.gate.set()
    await asyncio.gather(*running)
    assert len(cores.seen) == 3
    engine.close()


@pytest.mark.usefixtures("three_threads")
async def test_a_batch_on_all_cores_counts_as_one_of_those_that_run():
    cores = Cores(2)
    engine = Engine(cores.model)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    cores.gate.clear()
    running = [asyncio.ensure_future(engine.run(rows_of([stack])))]
    await until(lambda: cores.seen)
    running += [asyncio.ensure_future(engine.run(rows_of([stack]))) for _ in range(2)]
    await until(lambda: len(cores.seen) == 2)
    await asyncio.sleep(0.1)
    assert [name for name, *_ in cores.seen] == ["device", "core"]
    cores.gate.set()
    await asyncio.gather(*running)
    engine.close()


@pytest.mark.usefixtures("three_threads")
async def test_a_call_that_nobody_waits_for_any_more_is_company_until_it_ends():
    cores = Cores(2)
    engine = Engine(cores.model)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    cores.gate.clear()
    left = asyncio.ensure_future(engine.run(rows_of([stack])))
    await until(lambda: cores.seen)
    left.cancel()
    await asyncio.sleep(0.05)
    running = asyncio.ensure_future(engine.run(rows_of([stack])))
    await until(lambda: len(cores.seen) == 2)
    assert [name for name, *_ in cores.seen] == ["device", "core"]
    cores.gate.set()
    await running
    engine.close()


@pytest.mark.usefixtures("three_threads")
async def test_a_batch_with_a_row_for_every_core_leaves_the_others_to_others():
    cores = Cores(3)
    engine = Engine(cores.model)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    await engine.run(rows_of([stack] * 3))
    assert cores.seen == [("core", 3, 1)]
    engine.close()


async def test_batches_side_by_side_answer_as_they_do_alone_even_in_a_bank_for_one_stack():
    engine = Engine(PromptedClip(tiny_backbone(), n_at_once=3, bank_slots=1))
    bundles = [
        random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), seed=1),
        random_bundle("dogs", ("rex", "ace", "pug", "lab"), image_boost=(3, 3), seed=2),
        random_bundle("birds", ("owl", "jay", "tit"), image_boost=(1, 3), seed=3),
    ]
    stacks = [await engine.load(read_bundle(data), 1) for data in bundles]
    batches = [rows_of([stacks[(n + row) % 3] for row in range(4)]) for n in range(12)]
    alone = [await engine.run(batch) for batch in batches]
    together = await asyncio.gather(*(engine.run(batch) for batch in batches))
    engine.close()
    for one, other in zip(alone, together, strict=True):
        for mixed, single in zip(one, other, strict=True):
            assert [prediction.label for prediction in mixed] == [prediction.label for prediction in single]
            np.testing.assert_allclose(
                [prediction.probability for prediction in mixed],
                [prediction.probability for prediction in single],
                atol=1e-5,
            )


async def test_one_core_that_hangs_is_noticed_while_the_others_go_on():
    cores = Cores(2)
    engine = Engine(cores.model, stuck_after_s=0.2)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), 1)
    cores.gate.clear()
    hanging = asyncio.ensure_future(engine.run(rows_of([stack])))
    await until(lambda: cores.seen)
    cores.model.rank = cores.rank
    while not engine.is_stuck:
        await engine.run(rows_of([stack]))
        await asyncio.sleep(0.01)
    cores.gate.set()
    await hanging
    assert not engine.is_busy
    assert not engine.is_stuck
    engine.close()
