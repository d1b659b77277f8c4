"""Faults of a simulated GPU under the engine: sticky errors, failing allocations, invalidated captures."""

import pytest
import torch
from torch.torch_version import TorchVersion

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine, EngineRow
from service.engine.loading import image_tower
from service.errors import DeviceLostError, DeviceMemoryError
from service.settings import Settings
from tests.fakecuda.device import cuda_error
from tests.fakecuda.simulation import simulated_cuda
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(torch.cuda.is_available(), reason="no fault can be caused on a real GPU"),
]
MEMORY_ERRORS = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "runtime": cuda_error("out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
}


@pytest.fixture
def simulated():
    with simulated_cuda(eagerness=0.3) as simulated:
        yield simulated
    assert simulated.violations == []


@pytest.fixture
def engine(simulated):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda")
    engine = Engine(PromptedClip(backbone, image_tower=image_tower(backbone, Settings(max_batch_rows=4))))
    yield engine
    engine.close()


async def rows(engine, count, **options):
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), **options)))
    return [EngineRow(image, stack, 1) for image in random_pixels(count).numpy()]


@pytest.mark.parametrize(
    "message",
    ["unknown error", "hardware stack error", "uncorrectable NVLink error detected", "an illegal memory access"],
)
async def test_a_device_with_a_sticky_error_of_any_name_is_lost(engine, simulated, message):
    batch = await rows(engine, 2)
    await engine.run(batch)
    simulated.sticky = message
    with pytest.raises(DeviceLostError):
        await engine.run(batch)
    assert engine.is_lost


@pytest.mark.parametrize("kind", MEMORY_ERRORS)
async def test_a_batch_that_runs_out_of_memory_once_is_answered_in_halves(engine, simulated, kind):
    batch = await rows(engine, 4)
    expected = [result.predictions for result in await engine.run(batch)]
    simulated.memory_error, simulated.n_allocations_left = MEMORY_ERRORS[kind], 1
    found = [result.predictions for result in await engine.run(batch)]
    assert [[one.label for one in row] for row in found] == [[one.label for one in row] for row in expected]
    assert (engine.n_out_of_memory, engine.is_lost) == (1, False)


@pytest.mark.parametrize("kind", MEMORY_ERRORS)
async def test_work_that_runs_out_of_memory_fails_and_the_device_keeps_working(engine, simulated, kind):
    batch = await rows(engine, 1)
    simulated.memory_error, simulated.n_allocations_left = MEMORY_ERRORS[kind], 0
    with pytest.raises(DeviceMemoryError):
        await engine.with_labels(batch[0].stack, ["sun"])
    assert len((await engine.run(batch))[0].predictions) == 1


@pytest.mark.parametrize(
    "n_allocations", [n if n % 69 == 0 else pytest.param(n, marks=pytest.mark.slow) for n in range(0, 400, 23)]
)
async def test_memory_that_runs_out_anywhere_in_a_first_batch_leaves_right_answers(engine, simulated, n_allocations):
    batch = await rows(engine, 2)
    simulated.n_allocations_left = n_allocations
    found = await engine.run(batch)
    again = await engine.run(batch)
    assert [row.predictions[0].label for row in found] == [row.predictions[0].label for row in again]


async def test_an_invalidated_capture_runs_without_a_graph(engine, simulated, caplog):
    batch = await rows(engine, 2)
    simulated.n_invalid_captures = 1
    first, second = await engine.run(batch), await engine.run(batch)
    assert [row.predictions for row in first] == [row.predictions for row in second]
    assert "graph.not_captured" in caplog.messages
    assert (engine.is_lost, engine.n_out_of_memory) == (False, 0)


async def test_everything_that_a_conditional_heads_forward_reads_is_pinned(engine):
    options = {"head": "conditional", "text_boost": (2, 2), "text_adapt": (1, 2)}
    (row,) = await rows(engine, 1, **options)
    head = row.stack.head
    tensors = [head.context_NW, head.ids_KT, head.eot_K, head.boost.tokens, head.boost.depths, row.stack.image.tokens]
    assert all(tensor.is_pinned() for tensor in [*tensors, *vars(head.shift).values()])


async def test_a_torch_whose_allocator_does_not_end_invalid_captures_captures_nothing(simulated):
    register_tiny_models()
    simulated.ends_invalid_captures = False
    simulated.n_invalid_captures = 1
    backbone = load_backbone("tiny", random_seed=0, device="cuda")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(torch, "__version__", TorchVersion("2.12.1+cu128"))
        engine = Engine(PromptedClip(backbone, image_tower=image_tower(backbone, Settings(max_batch_rows=4))))
    batch = await rows(engine, 2)
    expected = [row.predictions[0].label for row in await engine.run(batch)]
    simulated.n_allocations_left = 1
    assert [row.predictions[0].label for row in await engine.run(batch)] == expected
    assert engine.n_out_of_memory == 1, "which empties the cache"
    engine.close()
