"""open_clip's modules are where `prompted_clip.internals` expects them; a failure names the one that moved."""

import copy
import inspect

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock

from prompted_clip import internals
from tests.tiny import tiny_backbone

PARTS = [
    "visual._embeds",
    "visual._pool",
    "visual.conv1.weight",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.ln_pre",
    "visual.ln_post",
    "visual.proj",
    "visual.attn_pool",
    "visual.pool_type",
    "visual.image_size",
    "visual.patch_size",
    "visual.output_dim",
    "visual.transformer.resblocks",
    "visual.transformer.batch_first",
    "visual.transformer.width",
    "token_embedding",
    "positional_embedding",
    "transformer.resblocks",
    "transformer.get_cast_dtype",
    "attn_mask",
    "ln_final",
    "text_projection",
    "text_pool_type",
    "context_length",
    "logit_scale",
]


@pytest.mark.parametrize("path", PARTS)
def test_open_clip_still_has_the_part(path):
    part = tiny_backbone().clip
    for name in path.split("."):
        assert hasattr(part, name), f"open_clip moved `{path}`: no `{name}` on {type(part).__name__}"
        part = getattr(part, name)


def test_a_block_still_takes_a_sequence_and_a_mask():
    parameters = inspect.signature(ResidualAttentionBlock.forward).parameters
    assert list(parameters)[1] == "q_x"
    assert "attn_mask" in parameters


def test_walking_the_image_tower_by_its_parts_is_its_forward():
    clip = tiny_backbone().clip
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = internals.embed_patches(clip, images)
        for block in internals.vision_blocks(clip):
            x = block(x)
        assert torch.equal(internals.project_image(clip, x), clip.visual(images))


@pytest.mark.parametrize("is_causal", [False, True])
def test_reading_one_position_of_a_block_is_that_position_of_its_output(is_causal: bool):
    clip = copy.deepcopy(tiny_backbone().clip).double()
    *_, block = internals.text_blocks(clip) if is_causal else internals.vision_blocks(clip)
    width = clip.transformer.width if is_causal else clip.visual.transformer.width
    x = torch.randn(3, 9, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = internals.causal_mask(clip, 9).double() if is_causal else None
    at = torch.tensor([0, 4, 8])
    with torch.no_grad():
        whole = block(x, attn_mask=mask)[torch.arange(3), at]
        read = internals.read_block(block, x, at, is_causal=is_causal)
    torch.testing.assert_close(read.squeeze(1), whole, rtol=0, atol=1e-12)
