"""The engine: batches, loading, smoke tests, missing memory, lost and stuck devices."""

import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine, EngineRow
from service.engine.loading import image_tower
from service.errors import DeviceLostError, DeviceMemoryError, InferenceFailedError
from service.settings import Settings
from tests.service.engine.engine_rows import predictions, rows_of, until
from tests.service.fakes import FakeModel, colour_bundle
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone

pytestmark = pytest.mark.anyio


async def test_loading_uses_one_thread_and_leaves_the_device_its_own(monkeypatch):
    model = PromptedClip(tiny_backbone())
    seen = {}

    def note(name, work):
        def noted(*args, **options):
            seen[name] = torch.get_num_threads()
            return work(*args, **options)

        return noted

    monkeypatch.setattr(model, "load_stack", note("load", model.load_stack))
    monkeypatch.setattr(model, "rank", note("device", model.rank))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        engine = Engine(model)
        stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))))
        await engine.run(rows_of([stack]))
        engine.close()
    finally:
        torch.set_num_threads(before)
    assert seen == {"load": 1, "device": 3}


async def test_a_mixed_batch_answers_each_row_as_if_it_were_alone(engine):
    bundles = [
        random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), seed=1),
        random_bundle("dogs", ("rex", "ace", "pug", "lab"), image_boost=(3, 3), text_boost=(2, 2), seed=2),
        random_bundle("birds", ("owl", "jay", "tit"), image_boost=(1, 2), image_adapt=(2, 1), seed=3),
    ]
    stacks = [await engine.load(read_bundle(data)) for data in bundles]
    assert len({stack.lane for stack in stacks}) == 1
    rows = rows_of([stacks[n % 3] for n in range(7)])
    together = await predictions(engine, rows)
    alone = [(await predictions(engine, [row]))[0] for row in rows]
    for row, mixed, single in zip(rows, together, alone, strict=True):
        assert [one.label for one in mixed] == [one.label for one in single]
        assert {one.label for one in mixed} == set(row.stack.class_names)
        np.testing.assert_allclose([one.probability for one in mixed], [one.probability for one in single], atol=1e-5)


async def test_heads_answer_in_one_batch_with_plain_stacks_as_if_they_were_alone(engine):
    bundles = [
        random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), seed=1),
        random_bundle("dogs", ("rex", "ace", "pug"), image_boost=(3, 3), head="class", seed=2),
        random_bundle("birds", ("owl", "jay"), image_boost=(1, 3), head="projector", labels="own", seed=3),
    ]
    stacks = [await engine.load(read_bundle(data)) for data in bundles]
    assert len({stack.lane for stack in stacks}) == 1
    rows = rows_of([stacks[n % 3] for n in range(6)])
    together = await predictions(engine, rows)
    alone = [(await predictions(engine, [row]))[0] for row in rows]
    for mixed, single in zip(together, alone, strict=True):
        assert [one.label for one in mixed] == [one.label for one in single]
        np.testing.assert_allclose([one.probability for one in mixed], [one.probability for one in single], atol=1e-5)


async def test_a_conditional_stack_passes_its_smoke_test_answers_and_counts_its_text_forwards(engine):
    data = random_bundle("dogs", ("rex", "ace", "pug"), head="conditional", text_boost=(2, 2), text_adapt=(1, 2))
    stack = await engine.load(read_bundle(data))
    await engine.smoke_test(stack)
    rows = rows_of([stack, await engine.with_labels(stack, ["heron", "kettle"]), await engine.boost_stack(stack)])
    assert [row.stack.n_text_rows for row in rows] == [3, 2, 0]
    answers = await predictions(engine, rows[:2]) + await predictions(engine, rows[2:])
    labels = [{one.label for one in answer} for answer in answers]
    assert labels == [{"rex", "ace", "pug"}, {"heron", "kettle"}, {"rex", "ace", "pug"}]
    broken = torch.full_like(stack.head.shift.bias_O, float("nan"))
    shift = dataclasses.replace(stack.head.shift, bias_O=broken)
    with pytest.raises(InferenceFailedError, match="NaN"):
        await engine.smoke_test(dataclasses.replace(stack, head=dataclasses.replace(stack.head, shift=shift)))


async def test_top_k_is_the_row_s_own_and_never_reaches_into_the_padding(engine):
    small = await engine.load(read_bundle(random_bundle("a", ("x", "y"))))
    large = await engine.load(read_bundle(random_bundle("b", tuple("klmnopq"))))
    pixels = random_pixels(3).numpy()
    rows = [EngineRow(pixels[0], small, 5), EngineRow(pixels[1], large, 3), EngineRow(pixels[2], large, 1)]
    answers = await predictions(engine, rows)
    assert [len(answer) for answer in answers] == [2, 3, 1]
    for answer in answers:
        assert [one.probability for one in answer] == sorted((one.probability for one in answer), reverse=True)
    assert all(one.label == small.class_names[one.class_id] for one in answers[0])


async def test_the_smoke_test_fails_for_a_stack_that_returns_nan(engine):
    stack = await engine.load(read_bundle(random_bundle()))
    await engine.smoke_test(stack)
    broken = dataclasses.replace(stack, text_features=torch.full_like(stack.text_features, float("nan")))
    with pytest.raises(InferenceFailedError, match="NaN"):
        await engine.smoke_test(broken)


async def test_other_labels_and_boost_only_go_through_the_real_text_tower(engine):
    stack = await engine.load(
        read_bundle(random_bundle(image_boost=(2, 2), text_boost=(2, 2), image_adapt=(1, 1), text_adapt=(1, 2)))
    )
    labelled = await engine.with_labels(stack, ["heron", "kettle"])
    boosted = await engine.boost_stack(stack)
    answers = [(await predictions(engine, rows_of([one])))[0] for one in (labelled, boosted)]
    assert {one.label for one in answers[0]} == {"heron", "kettle"}
    assert {one.label for one in answers[1]} == set(stack.class_names)


async def test_rows_that_fail_for_memory_are_split_until_they_fit():
    model, largest = FakeModel(), 2

    def encode(pixels, stacks, fits=model.encode_images):
        if len(stacks) > largest:
            raise torch.OutOfMemoryError("no room")
        return fits(pixels, stacks)

    model.encode_images = encode
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    pixels = np.zeros((3, 16, 16), dtype=np.uint8)
    answers = await predictions(engine, [EngineRow(pixels, stack, 1)] * 7)
    assert [len(answer) for answer in answers] == [1] * 7
    assert max(len(batch) for batch in model.batches) == 2
    largest = 0
    (refused,) = await engine.run([EngineRow(pixels, stack, 1)])
    assert isinstance(refused, DeviceMemoryError)
    engine.close()


async def test_a_stack_is_loaded_while_the_device_runs_batches(monkeypatch):
    model = FakeModel()
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    row, may_load, load = (
        EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1),
        threading.Event(),
        model.load_stack,
    )

    def load_later(bundle):
        assert may_load.wait(20)
        return load(bundle)

    monkeypatch.setattr(model, "load_stack", load_later)
    loading = asyncio.ensure_future(engine.load(read_bundle(colour_bundle(seed=1))))
    assert [len(answer) for _ in range(3) for answer in await predictions(engine, [row])] == [1, 1, 1]
    assert not loading.done()
    may_load.set()
    assert (await loading).digest == read_bundle(colour_bundle(seed=1)).digest
    engine.close()


@pytest.mark.parametrize("pipeline_depth", [0, 1])
async def test_no_more_batches_are_submitted_than_the_pipeline_depth_allows(pipeline_depth):
    model = FakeModel()
    model.pipeline_depth = pipeline_depth
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    row = EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)
    model.gate.clear()
    running = [asyncio.ensure_future(predictions(engine, [row])) for _ in range(3)]
    await until(lambda: model.n_begun == 1 + pipeline_depth)
    await asyncio.sleep(0.05)
    assert model.n_begun == 1 + pipeline_depth
    model.gate.set()
    assert [len(answer) for answers in await asyncio.gather(*running) for answer in answers] == [1, 1, 1]
    engine.close()


async def test_graphs_are_captured_one_at_a_time_between_the_batches_of_others():
    model = FakeModel()
    engine = Engine(model)
    done, stack = [], await engine.load(read_bundle(colour_bundle()))
    row = EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)
    others = []

    def first():
        done.append("first")
        others.append(asyncio.run_coroutine_threadsafe(engine.run([row]), loop))
        time.sleep(0.05)

    loop = asyncio.get_running_loop()
    model.to_capture = [first, lambda: done.append(f"second, batches: {len(model.batches)}")]
    await engine.smoke_test(stack)
    assert done == []
    await engine.capture_graphs(stack)
    await asyncio.wrap_future(others[0])
    assert done == ["first", "second, batches: 2"], "its own grey image and the batch of another"
    engine.close()


async def test_a_capture_leaves_all_device_threads_to_batches():
    model = FakeModel()
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    begun, answered = threading.Event(), threading.Event()

    def capture():
        begun.set()
        assert answered.wait(10), "no batch was answered during the capture"

    model.to_capture = [capture]
    capturing = asyncio.create_task(engine.capture_graphs(stack))
    await asyncio.to_thread(begun.wait, 10)
    await engine.run([EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)])
    answered.set()
    await capturing
    engine.close()


@pytest.mark.parametrize(
    ("num_streams", "max_microbatch", "n_allowed", "most"),
    [(1, None, 32, 32), (2, None, 32, 16), (1, 8, 32, 8), (2, 8, 32, 8), (2, 8, 6, 3), (4, 8, 2, 1)],
)
async def test_a_batch_is_no_larger_than_its_share_and_the_microbatch(num_streams, max_microbatch, n_allowed, most):
    model = FakeModel()
    model.num_streams, model.max_microbatch = num_streams, max_microbatch
    engine = Engine(model)
    assert engine.max_batch_rows(n_allowed) == most
    engine.close()


async def test_only_the_live_stacks_of_resident_domains_are_pinned():
    model = FakeModel()
    engine = Engine(model, resident_domains={"ink"})
    stacks = [await engine.load(read_bundle(colour_bundle(domain))) for domain in ("paint", "ink")]
    for stack in stacks:
        engine.went_live(stack)
    assert model.bank.pinned == [stacks[1]]
    engine.close()


async def test_a_lost_device_is_not_used_again():
    model = FakeModel()
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    model.lost_with = model.fail_with = RuntimeError("CUDA error: device-side assert triggered")
    row = EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)
    with pytest.raises(DeviceLostError):
        await engine.run([row])
    n_batches = len(model.batches)
    with pytest.raises(DeviceLostError):
        await engine.run([row])
    assert engine.is_lost
    assert len(model.batches) == n_batches
    engine.close()


async def test_a_call_that_hangs_is_stuck():
    model = FakeModel()
    engine = Engine(model, stuck_after_s=5)
    stack = await engine.load(read_bundle(colour_bundle()))
    model.gate.clear()
    running = asyncio.ensure_future(engine.run([EngineRow(np.zeros((3, 16, 16), dtype=np.uint8), stack, 1)]))
    await until(lambda: engine.activity.is_busy)
    engine.activity.tick(6)
    assert engine.activity.is_stuck
    model.gate.set()
    await running
    assert not engine.activity.is_busy
    assert not engine.activity.is_stuck
    engine.close()


async def test_a_long_call_of_many_short_forwards_is_not_stuck():
    clip = PromptedClip(tiny_backbone(), max_text_rows=1)
    engine = Engine(clip, stuck_after_s=5)
    stack = await engine.load(read_bundle(random_bundle(text_boost=(2, 2))))
    slow = tiny_backbone().clip.ln_final.register_forward_hook(lambda *_: engine.activity.tick(4))
    seen = []
    report = engine.activity.report_progress
    clip.on_progress = lambda: (seen.append(engine.activity.is_stuck), report())
    with_labels = await engine.with_labels(stack, [f"label {n}" for n in range(10)])
    slow.remove()
    engine.close()
    assert len(with_labels.class_names) == 10
    assert seen == [False] * 10


async def test_text_that_finds_no_device_memory_raises_that(monkeypatch):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory at 0x7f00")

    model = FakeModel()
    engine = Engine(model)
    stack = await engine.load(read_bundle(colour_bundle()))
    for name, call in (
        ("with_labels", lambda: engine.with_labels(stack, ["red"])),
        ("boost_stack", lambda: engine.boost_stack(stack)),
    ):
        monkeypatch.setattr(model, name, no_room)
        with pytest.raises(DeviceMemoryError, match="Out of device memory"):
            await call()
    assert not engine.is_lost
    await engine.smoke_test(stack)
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "class"},
        {"head": "projector", "labels": "own"},
        {"head": "conditional", "text_boost": (2, 2), "text_adapt": (1, 2)},
    ],
    ids=["plain", "class", "projector", "conditional"],
)
async def test_pipelined_batches_on_the_gpu_give_the_cpus_answers(options):
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda")
    served = PromptedClip(backbone, image_tower=image_tower(backbone, Settings(max_batch_rows=8)))
    bundle = read_bundle(random_bundle("dogs", ("rex", "ace", "pug", "lab"), seed=2, **options))
    found = []
    for engine in (Engine(PromptedClip(tiny_backbone())), Engine(served)):
        stack = await engine.load(bundle)
        await engine.smoke_test(stack)
        captures = asyncio.ensure_future(engine.capture_graphs(stack))  # beside the batches
        batches = [rows_of([stack] * n_rows) for n_rows in (4, 1, 8, 3, 5, 2) * 4]
        found.append(
            [
                answer
                for answers in await asyncio.gather(*(predictions(engine, one) for one in batches))
                for answer in answers
            ]
        )
        await captures
        engine.close()
    for cpu, gpu in zip(*found, strict=True):
        by_label = {one.label: one.probability for one in gpu}
        assert all(abs(one.probability - by_label[one.label]) < 1e-3 for one in cpu)
