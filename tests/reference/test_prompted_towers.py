"""Features and gradients of both prompted towers match a slow transcription of the equations, in float64."""

import copy
import dataclasses

import pytest
import torch

from prompted_clip.backbone import load_backbone
from prompted_clip.internals import architecture_facts
from prompted_clip.prompts import join_groups
from prompted_clip.text import encode_tokens, tokenize
from prompted_clip.vision import encode_image
from tests.reference.slow_clip import SlowClip
from tests.tiny import register_tiny_models

GROUPS = [(None, None), ((2, 3), None), (None, (3, 2)), ((3, 2), (1, 4)), ((1, 1), (3, 5))]


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick-gelu"])
def backbone(request):
    register_tiny_models()
    tiny = load_backbone("tiny", random_seed=0, quick_gelu=request.param)
    return dataclasses.replace(tiny, clip=copy.deepcopy(tiny.clip).double(), dtype=torch.float64)


@pytest.fixture(scope="module")
def slow(backbone):
    facts = architecture_facts(backbone.clip)
    return SlowClip(
        backbone.clip.state_dict(),
        vision_heads=facts["vision_heads"],
        text_heads=facts["text_heads"],
        quick_gelu=facts["quick_gelu"],
    )


def group(shape, width, seed):
    if shape is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, width, dtype=torch.float64, generator=generator).requires_grad_()


def relative_error(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


TOLERANCE = 1e-9


@pytest.mark.parametrize(("boost_shape", "adapt_shape"), GROUPS)
def test_image_tower_and_its_prompt_gradients_match_the_slow_reference(backbone, slow, boost_shape, adapt_shape):
    boost, adapt = group(boost_shape, 32, 1), group(adapt_shape, 32, 2)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = encode_image(backbone, image, join_groups([boost, adapt]))
    expected = torch.stack([slow.image(row, boost, adapt) for row in image])
    assert relative_error(found, expected) < TOLERANCE
    _compare_gradients(found, expected, [boost, adapt])


@pytest.mark.parametrize(("boost_shape", "adapt_shape"), GROUPS)
def test_text_tower_and_its_prompt_gradients_match_the_slow_reference(backbone, slow, boost_shape, adapt_shape):
    boost, adapt = group(boost_shape, 32, 4), group(adapt_shape, 32, 5)
    grid = join_groups([adapt, boost])
    texts = ["cat.", "a rather long striped class name with many words."]
    tokens, eot = tokenize(backbone, texts, n_prompts=grid.n_tokens if grid else 0)
    found = encode_tokens(backbone, tokens, eot, grid)
    expected = torch.stack(
        [slow.text(row[: end + 1].tolist(), adapt, boost) for row, end in zip(tokens, eot, strict=True)]
    )
    assert relative_error(found, expected) < TOLERANCE
    _compare_gradients(found, expected, [adapt, boost])


def _compare_gradients(found, expected, groups):
    prompts = [tensor for tensor in groups if tensor is not None]
    if not prompts:
        return
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).reshape(found.shape)
    ours = torch.autograd.grad((found * weights).sum(), prompts)
    theirs = torch.autograd.grad((expected * weights).sum(), prompts)
    for mine, other in zip(ours, theirs, strict=True):
        assert relative_error(mine, other) < TOLERANCE
