"""Embeddings of an engine's rows: who asks gets them, and they are open_clip's features."""

import dataclasses

import numpy as np
import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.model import PromptedClip
from service.engine.engine import Engine, EngineRow
from service.errors import InferenceFailedError
from tests.stacks import random_bundle
from tests.tiny import random_pixels, tiny_backbone

pytestmark = pytest.mark.anyio


@pytest.fixture
def engine():
    engine = Engine(PromptedClip(tiny_backbone()))
    yield engine
    engine.close()


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
