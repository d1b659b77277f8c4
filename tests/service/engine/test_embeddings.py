"""Embeddings of an engine's rows: only for rows that request them, and equal to open_clip's features."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip import model
from prompted_clip.backbone import load_backbone
from prompted_clip.model import PromptedClip
from prompted_clip.transfers import to_host
from service.engine.engine import Engine, EngineRow
from service.engine.loading import image_tower
from service.errors import InferenceFailedError
from service.settings import Settings
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone

pytestmark = pytest.mark.anyio


def unit(result):
    return np.frombuffer(result.embedding, dtype="<f4")


async def test_rows_with_and_without_an_embedding_share_a_batch_and_are_answered_as_if_alone(engine):
    bundles = [
        random_bundle("cats", ("tom", "kit"), image_boost=(2, 3), seed=1),
        random_bundle("dogs", ("rex", "ace", "pug"), image_boost=(3, 3), head="class", seed=2),
        random_bundle("birds", ("owl", "jay"), image_boost=(1, 3), head="projector", labels="own", seed=3),
    ]
    stacks = [await engine.load(read_bundle(data)) for data in bundles]
    pixels = random_pixels(9).numpy()
    rows = [EngineRow(image, stacks[n % 3], 5, embedding=n % 2 == 0) for n, image in enumerate(pixels)]
    for row, mixed in zip(rows, await engine.run(rows), strict=True):
        (alone,) = await engine.run([row])
        (plain,) = await engine.run([EngineRow(row.pixels, row.stack, 5)])
        assert plain.embedding is None
        assert [one.label for one in mixed.predictions] == [one.label for one in plain.predictions]
        assert (mixed.embedding is not None) == (alone.embedding is not None) == row.embedding
        if row.embedding:
            np.testing.assert_allclose(unit(mixed), unit(alone), atol=1e-6)
            assert np.linalg.norm(unit(mixed)) == pytest.approx(1, abs=1e-6)


async def test_without_image_prompts_an_embedding_is_open_clip_s(engine):
    backbone = tiny_backbone()
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=None, text_boost=(1, 2))))
    pixels = random_pixels(4)
    found = await engine.run([EngineRow(image, stack, 1, embedding=True) for image in pixels.numpy()])
    mean, std = (torch.tensor(backbone.preprocess[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        expected = backbone.clip.encode_image((pixels / 255 - mean) / std, normalize=True)
    np.testing.assert_allclose([unit(result) for result in found], expected.numpy(), atol=1e-5)


async def test_a_row_whose_embedding_is_nan_fails_alone(engine):
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))))
    prompts = dataclasses.replace(stack.image, tokens=torch.full_like(stack.image.tokens, float("nan")))
    broken = dataclasses.replace(stack, image=prompts)
    pixels = random_pixels(2).numpy()
    good, bad = await engine.run([EngineRow(pixels[0], stack, 1, True), EngineRow(pixels[1], broken, 1, True)])
    assert np.isfinite(unit(good)).all()
    assert isinstance(bad, InferenceFailedError)


@pytest.mark.gpu
async def test_a_batch_waits_for_the_device_once_and_copies_embeddings_only_if_a_row_needs_one(monkeypatch):
    register_tiny_models()
    engine = Engine(PromptedClip(load_backbone("tiny", random_seed=0, device="cuda")))
    copied = []

    def noted(*tensors):
        copied.append([tuple(tensor.shape) for tensor in tensors])
        return to_host(*tensors)

    monkeypatch.setattr(model, "to_host", noted)
    stack = await engine.load(read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))))
    rows = [EngineRow(image, stack, 2) for image in random_pixels(3).numpy()]
    await engine.run(rows)
    await engine.run([dataclasses.replace(rows[0], embedding=True), *rows[1:]])
    engine.close()
    assert copied == [[(3, 2), (3, 2)], [(3, 2), (3, 2), (3, engine.backbone.embed_dim)]]


@pytest.mark.gpu
async def test_embeddings_from_the_gpu_are_those_from_the_cpu():
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, device="cuda")
    served = PromptedClip(backbone, image_tower=image_tower(backbone, Settings(max_batch_rows=8)))
    bundle, found = read_bundle(random_bundle("cats", ("tom", "kit"), image_boost=(2, 3))), []
    for engine in (Engine(PromptedClip(tiny_backbone())), Engine(served)):
        stack = await engine.load(bundle)
        rows = [EngineRow(image, stack, 1, embedding=True) for image in random_pixels(16).numpy()]
        batches = [rows[start : start + 4] for start in range(0, 16, 4)]
        results = await asyncio.gather(*map(engine.run, batches))
        found.append([unit(result) for batch in results for result in batch])
        engine.close()
    np.testing.assert_allclose(*found, atol=1e-3)
