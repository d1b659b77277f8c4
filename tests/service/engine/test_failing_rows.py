"""A batch that fails: only the rows at fault fail, whatever the fault and wherever they are."""

import asyncio
import dataclasses
import math
import sys

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from service.engine.engine import Engine, EngineRow
from service.errors import DeviceLostError, DeviceMemoryError, InferenceFailedError
from service.observability.metrics import Metrics
from service.scheduler.batcher import Batcher
from tests.service.engine.engine_rows import until
from tests.service.fakes import FakeModel, colour_bundle

pytestmark = pytest.mark.anyio

N_ROWS = 16
AT_FAULT = "fault"
"""Domain of the row at fault."""
POSITIONS = [n if n in {0, 7, N_ROWS - 1} else pytest.param(n, marks=pytest.mark.slow) for n in range(N_ROWS)]


class FaultyModel(FakeModel):
    """Fails for batches with a row of the domain `fault`; `fault(ranked, position)` raises or changes the answers."""

    def __init__(self, fault=lambda ranked, _: ranked):
        super().__init__()
        self.fault = fault
        self.n_forwards = 0

    def rank(self, pixels_BCHW, stacks, top_ks, **options):
        self.n_forwards += 1
        ranked = super().rank(pixels_BCHW, stacks, top_ks, **options)
        domains = [stack.domain for stack in stacks]
        return self.fault(ranked, domains.index(AT_FAULT)) if AT_FAULT in domains else ranked


def raising(error):
    def fault(ranked, _):
        raise error

    return fault


def out_of_memory_unless_alone(ranked, _):
    if len(ranked) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return ranked


def with_probability(value):
    def fault(ranked, position):
        return [*ranked[:position], ranked[position]._replace(probabilities=[value]), *ranked[position + 1 :]]

    return fault


FAULTS = {
    "exception": (raising(RuntimeError("a kernel failed")), InferenceFailedError),
    "stop iteration": (raising(StopIteration()), InferenceFailedError),
    "value error": (raising(ValueError("this stack has other shapes")), InferenceFailedError),
    "nan": (with_probability(math.nan), InferenceFailedError),
    "infinity": (with_probability(math.inf), InferenceFailedError),
    "memory of the batch": (out_of_memory_unless_alone, None),
    "memory of the row": (raising(torch.OutOfMemoryError("CUDA out of memory")), DeviceMemoryError),
    "memory of cuBLAS": (raising(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")), DeviceMemoryError),
    "an answer too few": (lambda ranked, _: ranked[:-1], InferenceFailedError),
    "a class that does not exist": (
        lambda ranked, at: [*ranked[:at], ranked[at]._replace(class_ids=[99]), *ranked[at + 1 :]],
        InferenceFailedError,
    ),
}


def grey(side=16):
    return np.full((3, side, side), 128, dtype=np.uint8)


def batcher_of(engine):
    return Batcher(engine.run, max_batch_rows=N_ROWS, max_queued_rows=4 * N_ROWS, observer=Metrics())


async def outcomes(model, rows, *, cancelled=None):
    """The outcome of each row of one batch, and the sizes of the batches that the engine got."""
    engine = Engine(model)
    batcher = batcher_of(engine)
    futures = batcher.submit(rows, key="lane", tenant="paint", deadline_s=math.inf)
    if cancelled is not None:
        await until(lambda: model.n_begun)
        futures[cancelled].cancel()
        model.gate.set()
    found = await asyncio.gather(*futures, return_exceptions=True)
    assert batcher._admission.n_running == 0, "the device is free again"
    engine.close()
    return found


def rows_with(fault_at=None):
    stack = FakeModel().load_stack(read_bundle(colour_bundle()))
    stacks = [dataclasses.replace(stack, domain=AT_FAULT if at == fault_at else "paint") for at in range(N_ROWS)]
    return [EngineRow(grey(), one, 1) for one in stacks]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", FAULTS)
async def test_a_row_at_fault_fails_alone(kind, position):
    fault, error = FAULTS[kind]
    model = FaultyModel(fault)
    found = await outcomes(model, rows_with(position))
    for at, outcome in enumerate(found):
        if at == position and error is not None:
            assert type(outcome) is error
        else:
            assert len(outcome.result.predictions) == 1
    assert model.n_forwards <= 1 + 2 * math.log2(N_ROWS)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pixels", [grey(8), grey()[:2], grey() / 255], ids=["side", "channels", "type"])
async def test_a_row_with_pixels_of_another_shape_or_type_fails_alone(position, pixels):
    rows = rows_with()
    rows[position] = dataclasses.replace(rows[position], pixels=pixels)
    found = await outcomes(FaultyModel(), rows)
    assert [at for at, outcome in enumerate(found) if isinstance(outcome, InferenceFailedError)] == [position]
    assert sum(not isinstance(outcome, Exception) for outcome in found) == N_ROWS - 1


@pytest.mark.parametrize("position", POSITIONS)
async def test_a_row_that_is_cancelled_while_its_batch_runs_leaves_the_others(position):
    model = FaultyModel()
    model.gate.clear()
    found = await outcomes(model, rows_with(), cancelled=position)
    assert [at for at, outcome in enumerate(found) if isinstance(outcome, asyncio.CancelledError)] == [position]
    assert sum(not isinstance(outcome, BaseException) for outcome in found) == N_ROWS - 1


async def test_a_lost_device_is_not_used_for_the_halves_of_a_failed_batch():
    errors = [RuntimeError("a kernel failed"), RuntimeError("CUDA error: an illegal memory access was encountered")]

    def fault(ranked, _):
        error = errors.pop(0)
        model.lost_with = error if not errors else None
        raise error

    model = FaultyModel(fault)
    found = await outcomes(model, rows_with(0))
    assert {type(outcome) for outcome in found} == {DeviceLostError}
    assert model.n_forwards == 2


async def test_a_batch_without_memory_frees_it_once_and_counts_once():
    model = FaultyModel(raising(torch.OutOfMemoryError("CUDA out of memory")))
    engine = Engine(model)
    answers = await engine.run(rows_with(5))
    engine.close()
    assert type(answers[5]) is DeviceMemoryError
    assert model.n_forwards == 9
    assert engine.n_out_of_memory == 1


async def test_the_cache_of_the_allocator_is_emptied_once_and_outside_the_handler_whose_traceback_holds_tensors(
    monkeypatch,
):
    engine, calls = Engine(FakeModel()), []
    engine.backbone = dataclasses.replace(engine.backbone, device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append(("empty_cache", sys.exception())))

    def forward(rows):
        calls.append((len(rows), sys.exception()))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[] for _ in rows]

    monkeypatch.setattr(engine, "_forward", forward)
    assert await engine.run(rows_with()) == [[]] * N_ROWS
    engine.close()
    assert calls == [(call, None) for call in (16, "empty_cache", 8, 4, 4, 8, 4, 4)]


async def test_three_batches_without_memory_within_a_minute_halve_the_batches_for_five_minutes():
    now_s = [0.0]
    model = FaultyModel(out_of_memory_unless_alone)
    engine = Engine(model)
    engine.batch_limit._clock = lambda: now_s[0]
    for now_s[0] in (0.0, 61.0, 62.0, 63.0):
        assert engine.batch_limit.max_rows == 0
        await engine.run(rows_with(0))
    assert engine.batch_limit.max_rows == 8
    model.batches.clear()
    assert all(len(result.predictions) == 1 for result in await engine.run(rows_with()))
    assert [len(batch) for batch in model.batches] == [8, 8]
    now_s[0] += 300.0
    assert engine.batch_limit.max_rows == 0
    engine.close()


async def test_halves_that_run_out_of_memory_again_are_halved_again():
    model = FaultyModel(out_of_memory_unless_alone)
    engine = Engine(model)
    for _ in range(6):
        await engine.run(rows_with(0))
    assert engine.batch_limit.max_rows == 4
    engine.close()
