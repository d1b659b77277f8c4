"""Answers in bfloat16 and float16, as served, against open_clip's modules in float32, for every kind of stack."""

import functools

import pytest
import torch

from prompt_store.bundle import read_bundle
from prompted_clip.backbone import load_backbone
from prompted_clip.fused_tower import FusedImageTower
from prompted_clip.model import PromptedClip
from tests.stacks import random_bundle
from tests.tiny import random_pixels, register_tiny_models, tiny_backbone

N_ROWS = 4
BOUNDS = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
"""Of a class's cosine; eight and eleven binary digits are 4e-3 and 5e-4."""
BOTH = {"image_boost": (2, 3), "text_boost": (2, 2)}
ADAPTED = BOTH | {"image_adapt": (1, 2), "text_adapt": (1, 2)}
CONDITIONAL = {"head": "conditional", "text_boost": (2, 2), "text_adapt": (1, 2)}


def loaded(model, **options):
    return model.load_stack(read_bundle(random_bundle(**options)))


STACKS = {
    "plain": lambda model: model.plain_stack("plain", ["cat", "dog"], ["a photo of a {}."]),
    "boosted": lambda model: loaded(model, **BOTH),
    "adapted": lambda model: loaded(model, **ADAPTED),
    "boost only": lambda model: model.boost_stack(loaded(model, **ADAPTED)),
    "other labels": lambda model: model.with_labels(loaded(model, **BOTH), ["heron", "kettle", "cat"]),
    "conditional": lambda model: loaded(model, **CONDITIONAL),
    "projector": lambda model: loaded(model, head="projector", labels="own"),
    "class head": lambda model: loaded(model, head="class"),
}


@functools.cache
def model_of(dtype):
    if dtype is None:
        return PromptedClip(tiny_backbone())
    register_tiny_models()
    backbone = load_backbone("tiny", random_seed=0, dtype=dtype)
    return PromptedClip(backbone, image_tower=FusedImageTower(backbone))


def log_probabilities(model, make):
    stack = make(model)
    images = model.encode_images(random_pixels(N_ROWS), [stack] * N_ROWS)
    return torch.stack(model.score(images, [stack] * N_ROWS)).double().log(), stack.logit_scale


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_answers_of_narrow_dtypes_are_near_those_of_float32(dtype, kind):
    expected, logit_scale = log_probabilities(model_of(None), STACKS[kind])
    found, _ = log_probabilities(model_of(dtype), STACKS[kind])
    # The softmax takes one number off all logits of a row, which is no further off than the worst of them.
    assert ((found - expected).abs().max() / logit_scale).item() < 2 * BOUNDS[dtype]
